"""One lane of a signer: a thread with an HSM session of its own, and how its results come back.

What it is given, and when, is decided by `lanes`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from kmsd.errors import KmsdError, Late
from kmsd.hsm import Handle, Hsm, Session
from kmsd.ring import Entry

Handles = tuple[Handle, ...]
"""One key as each lane knows it, in the order of the lanes."""
PIECE = 0.001
"""Seconds of signing in one piece of a frame, where there are several lanes."""
TOGETHER = 0.0005
"""Seconds for which a lane gathers what it has done, so that under load many lone signatures cost
one wake-up of the event loop."""
SILENCE = 5.0
"""Seconds without a signature after which an HSM that is asked for one counts as lost."""
CLOSING = 2.0
"""Seconds in which a lane that is told to end does so, or hangs."""
LOADING_PAUSE = 0.001
"""Seconds between two keys that are loaded, for a lane that has something to sign."""
TOGETHER = 0.0005
"""Seconds for which a lane gathers what it has done, so that under load many lone signatures cost
one wake-up of the event loop."""
SILENCE = 5.0
"""Seconds without a signature after which an HSM that is asked for one counts as lost."""
CLOSING = 2.0
"""Seconds in which a lane that is told to end does so, or hangs."""
LOADING_PAUSE = 0.001
"""Seconds between two keys that are loaded, for a lane that has something to sign."""
CLOSING = 2.0
"""Seconds in which a lane that is told to end does so, or hangs."""
LOADING_PAUSE = 0.001
"""Seconds between two keys that are loaded, for a lane that has something to sign."""
LOADING_PAUSE = 0.001
"""Seconds between two keys that are loaded, for a lane that has something to sign."""


class Batch:
    """One frame at work: its signatures in order, once all pieces are there.

    deadline: of the monotonic clock; what has not begun by then does not begin.
    """

    __slots__ = ("_left", "_signatures", "deadline", "future", "key")

    def __init__(self, key: Handles, items: int, pieces: int, deadline: float) -> None:
        self.key = key
        self.deadline = deadline
        self.future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._signatures = [b""] * items
        self._left = pieces

    def took(self, start: int, outcome: list[bytes] | Exception) -> None:
        """A piece was signed, or failed. In the event loop alone."""
        if self.future.done():  # cancelled, or another piece failed
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
            return
        self._signatures[start : start + len(outcome)] = outcome
        self._left -= 1
        if not self._left:
            self.future.set_result(self._signatures)


Piece = tuple[Batch, int, Sequence[bytes]]
Done = tuple[Batch, int, list[bytes] | Exception]


class Finished:
    """What lanes have done, on its way back: one wake-up of the loop for all that is there."""

    def __init__(self) -> None:
        self._done: deque[Done] = deque()
        self._is_told = False

    def append(self, done: Done) -> None:
        """In any lane's thread; `tell` follows before that lane waits for anything."""
        self._done.append(done)

    def tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wakes the loop, unless it was woken and has not come yet."""
        if self._done and not self._is_told:
            self._is_told = True
            try:
                loop.call_soon_threadsafe(self._take)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._done.clear()

    def _take(self) -> None:
        # In this order: what is appended after the flag is down wakes the loop again.
        self._is_told = False
        while self._done:
            batch, start, outcome = self._done.popleft()
            batch.took(start, outcome)


class Lane:
    """One thread, one session.

    pace: seconds a signature takes it of late. signed: how many it has made. at_work: in the HSM.
    """

    def __init__(
        self, hsm: Hsm, number: int, pieces: "SimpleQueue[Piece | None]", finished: Finished
    ) -> None:
        """Blocks until the session is open. Raises Unavailable."""
        self.number = number
        self.pace = 0.0
        self.signed = 0
        self.at_work = False
        self._session: Session = hsm.session()
        self._pieces = pieces
        self._finished = finished
        self._turn = Lock()  # a session is one thread's at a time: ours, or that of `load`
        # A daemon: a thread that hangs in the HSM must not keep its process from being replaced.
        self._thread = Thread(target=self._work, name=f"lane-{number}", daemon=True)
        self._thread.start()

    def load(self, entries: Sequence[Entry]) -> list[Handle | KmsdError]:
        """Finds the keys and checks them; for each entry its handle, or why it cannot sign.

        Blocks; what is to be signed meanwhile takes its turn between two keys.
        """
        found: list[Handle | KmsdError] = []
        known: dict[tuple[str, str], Handle] = {}  # profiles may share a key
        for entry in entries:
            name = entry.key_id, entry.spki_sha256
            if name in known:
                found.append(known[name])
                continue
            with self._turn:
                try:
                    known[name] = self._session.load(*name)
                    found.append(known[name])
                except KmsdError as error:
                    found.append(error)
            if self.at_work:  # it waits for its turn, and a Lock is not fair
                time.sleep(LOADING_PAUSE)
        return found

    def close(self) -> bool:
        """Waits for the thread, which was told to end, and closes the session; False: it hangs."""
        self._thread.join(CLOSING)
        if self._thread.is_alive():
            return False
        self._session.close()
        return True

    def _work(self) -> None:
        """The thread: piece after piece, until None."""
        piece = self._pieces.get()
        tell_by = time.monotonic() + TOGETHER
        while piece is not None:
            batch, start, digests = piece
            if not batch.future.done():
                self._finished.append((batch, start, self._outcome(batch, digests)))
            try:
                piece = self._pieces.get_nowait()
            except Empty:
                self._finished.tell(batch.future.get_loop())
                piece = self._pieces.get()
                tell_by = time.monotonic() + TOGETHER
            else:
                if piece is None or time.monotonic() + len(piece[2]) * self.pace > tell_by:
                    self._finished.tell(batch.future.get_loop())
                    tell_by = time.monotonic() + TOGETHER

    def _outcome(self, batch: Batch, digests: Sequence[bytes]) -> list[bytes] | Exception:
        sign, handle = self._session.sign, batch.key[self.number]
        signatures = []
        self.at_work = True
        try:
            with self._turn:
                begun = time.monotonic()
                if begun > batch.deadline:
                    return late()
                for digest in digests:
                    signatures.append(sign(handle, digest))
                    self.signed += 1
        except Exception as error:
            return error
        finally:
            self.at_work = False
        each = (time.monotonic() - begun) / len(digests)
        self.pace = self.pace * 0.8 + each * 0.2 if self.pace else each
        return signatures


def late() -> Late:
    """What is said to a call or frame whose time was over before its turn."""
    return Late("DEADLINE_PASSED", "The deadline passed before this call's turn.")
