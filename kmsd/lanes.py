"""Where a signer's HSM work happens: lanes, each one thread with one HSM session of its own.

Work moves to a thread per frame, never per signature, so that a slow HSM stops neither the event
loop nor the health check. All lanes take from one queue: a frame is cut into pieces that keep a
lane busy for about a millisecond, so that a network HSM of many sessions has all of them at work
and a quick one is not asked in crumbs. A frame whose caller has gone is dropped while it waits.
The first lost HSM is told to `on_loss`, once; the process is then replaced (a PKCS#11 module is
not re-initialised under running signatures).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Lock, Thread

from kmsd.errors import Exhausted, KmsdError, Unavailable
from kmsd.hsm import Handle, Hsm, Session
from kmsd.keyring import Entry

Handles = tuple[Handle, ...]
"""One key as each lane knows it, in the order of the lanes."""
PIECE = 0.001
"""Seconds of signing in one piece of a frame, where there are several lanes."""
TOGETHER = 0.0005
"""Seconds for which a lane gathers what it has done, so that under load many lone signatures cost
one wake-up of the event loop."""


class Batch:
    """One frame at work: its signatures in order, once all pieces are there."""

    __slots__ = ("_left", "_signatures", "future", "key")

    def __init__(self, key: Handles, items: int, pieces: int) -> None:
        self.key = key
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


class Lane:
    """One thread, one session. pace: seconds a signature takes it of late."""

    def __init__(self, hsm: Hsm, number: int, pieces: "SimpleQueue[Piece | None]") -> None:
        """Blocks until the session is open. Raises Unavailable."""
        self.number = number
        self.pace = 0.0
        self._session: Session = hsm.session()
        self._pieces = pieces
        self._turn = Lock()  # a session is one thread's at a time: ours, or that of `load`
        # A daemon: a thread that hangs in the HSM must not keep its process from being replaced.
        self._thread = Thread(target=self._work, name=f"lane-{number}", daemon=True)
        self._thread.start()

    def load(self, entries: Sequence[Entry]) -> list[Handle | KmsdError]:
        """Finds the keys and checks them; for each entry its handle, or why it cannot sign.

        Blocks, between two pieces of this lane.
        """
        found: list[Handle | KmsdError] = []
        with self._turn:
            for entry in entries:
                try:
                    found.append(self._session.load(entry.key_id, entry.spki_sha256))
                except KmsdError as error:
                    found.append(error)
        return found

    def close(self) -> None:
        """Waits for the thread, which was told to end, then closes the session."""
        self._thread.join()
        self._session.close()

    def _work(self) -> None:
        """The thread: piece after piece, until None."""
        pieces = self._pieces
        piece = pieces.get()
        while piece is not None:
            enough = time.perf_counter() + TOGETHER
            done: list[Done] = []
            while piece is not None:
                batch, start, digests = piece
                if not batch.future.cancelled():
                    done.append((batch, start, self._outcome(batch.key, digests)))
                if pieces.empty() or time.perf_counter() > enough:
                    break
                piece = pieces.get()
            if done:
                try:
                    done[0][0].future.get_loop().call_soon_threadsafe(_tell, done)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return
            if piece is not None:
                piece = pieces.get()

    def _outcome(self, key: Handles, digests: Sequence[bytes]) -> list[bytes] | Exception:
        sign, handle = self._session.sign, key[self.number]
        begun = time.perf_counter()
        try:
            with self._turn:
                signatures = [sign(handle, digest) for digest in digests]
        except Exception as error:
            return error
        each = (time.perf_counter() - begun) / len(digests)
        self.pace = self.pace * 0.8 + each * 0.2 if self.pace else each
        return signatures


def _tell(done: "list[Done]") -> None:
    for batch, start, outcome in done:
        batch.took(start, outcome)


class Lanes:
    """The lanes of one signer: `threads` of them, or as many as the module bears.

    longest_wait: seconds a frame may wait for its turn; `admit` refuses one that would wait longer,
    so that what is accepted stays quick. Opening blocks: it is no work for the event loop.
    Raises Unavailable.
    """

    def __init__(
        self, hsm: Hsm, threads: int, *, longest_wait: float, on_loss: Callable[[KmsdError], None]
    ) -> None:
        self.waiting = 0
        self._longest_wait = longest_wait
        self._on_loss = on_loss
        self._lost = False
        self._pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self._lanes: list[Lane] = []
        try:
            for number in range(min(threads, hsm.max_threads)):
                self._lanes.append(Lane(hsm, number, self._pieces))
        except BaseException:
            self.close()
            raise

    async def load(self, entries: Sequence[Entry]) -> list[Handles | KmsdError]:
        """Makes every lane ready to sign for `entries`; for each entry what `sign` wants, or why
        it cannot be signed with.
        """
        answers = await asyncio.gather(
            *(asyncio.to_thread(lane.load, entries) for lane in self._lanes)
        )
        return [self._agreed(found) for found in zip(*answers, strict=True)]

    def admit(self, count: int) -> None:
        """Raises Exhausted (OVERLOADED) when `count` more signatures would wait too long.

        Asked before a frame costs anything. Idle lanes take whatever comes.
        """
        each = self.pace() / len(self._lanes)
        if self.waiting and (self.waiting + count) * each > self._longest_wait:
            raise Exhausted(
                "OVERLOADED",
                "This signer has more to sign than it can in time.",
                next_step="Try another signer, or send less.",
                retry_after_seconds=f"{self.waiting * each:.3f}",
            )

    def sign(self, key: Handles, digests: Sequence[bytes]) -> "asyncio.Future[list[bytes]]":
        """64 bytes r||s for each 32-byte digest of one frame, in their order.

        Fails with KmsdError: Unavailable when the HSM is lost.
        """
        count = len(digests)
        size = -(-count // len(self._lanes))
        if len(self._lanes) > 1 and (pace := self.pace()):
            size = max(1, min(size, int(PIECE / pace)))
        starts = range(0, count, size)
        batch = Batch(key, count, len(starts))
        self.waiting += count
        batch.future.add_done_callback(lambda signed: self._signed(count, signed))
        for start in starts:
            self._pieces.put((batch, start, digests[start : start + size]))
        return batch.future

    def close(self) -> None:
        """Signs what waits, then closes every session; the login is closed after this."""
        for _ in self._lanes:
            self._pieces.put(None)
        for lane in self._lanes:
            lane.close()

    def pace(self) -> float:
        """Seconds that a signature takes one lane of late; 0.0 before the first."""
        return sum(lane.pace for lane in self._lanes) / len(self._lanes)

    def _signed(self, count: int, signed: "asyncio.Future[list[bytes]]") -> None:
        self.waiting -= count
        if not signed.cancelled() and isinstance(error := signed.exception(), Unavailable):
            self._lose(error)

    def _agreed(self, found: Sequence[Handle | KmsdError]) -> Handles | KmsdError:
        handles = []
        for one in found:
            if isinstance(one, KmsdError):
                if isinstance(one, Unavailable):
                    self._lose(one)
                return one
            handles.append(one)
        return tuple(handles)

    def _lose(self, error: KmsdError) -> None:
        if not self._lost:
            self._lost = True
            self._on_loss(error)
