"""Where a signer's HSM work happens: lanes, each one thread with one HSM session of its own.

Work moves to a thread per frame, never per signature, so that a slow HSM stops neither the event
loop nor the health check. All lanes take from one queue: a frame is cut into pieces that keep a
lane busy for about a millisecond, so that a network HSM of many sessions has all of them at work
and a quick one is not asked in crumbs. A frame nobody waits for is dropped while it waits.

The first lost HSM, or one that says nothing for SILENCE, is told to `on_loss`, once, and whatever
is at work fails; the process is then replaced (a PKCS#11 module is not re-initialised under
running signatures, and a call that hangs in it ends with its process alone).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from queue import SimpleQueue

from kmsd.errors import Exhausted, KmsdError, Unavailable
from kmsd.hsm import Handle, Hsm
from kmsd.lane import Batch, Finished, Handles, Lane, Piece
from kmsd.ring import Entry

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
SILENCE = 5.0
"""Seconds without a signature after which an HSM that is asked for one counts as lost."""
CLOSING = 2.0
"""Seconds in which a lane that is told to end does so, or hangs."""
LOADING_PAUSE = 0.001
"""Seconds between two keys that are loaded, for a lane that has something to sign."""


class Lanes:
    """The lanes of one signer: `threads` of them, or as many as the module bears.

    longest_wait: seconds a frame may wait for its turn; `admit` refuses one that would wait longer,
    so that what is accepted stays quick. Opening blocks: it is no work for the event loop.
    waiting: signatures that are asked for and not there. Raises Unavailable.
    """

    def __init__(
        self, hsm: Hsm, threads: int, *, longest_wait: float, on_loss: Callable[[KmsdError], None]
    ) -> None:
        self.waiting = 0
        self._longest_wait = longest_wait
        self._on_loss = on_loss
        self._lost = False
        self._pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self._finished = Finished()
        self._leaving: deque[Piece] = deque()
        self._batches: set[Batch] = set()
        self._progress: dict[int, tuple[int, float]] = {}
        self._lanes: list[Lane] = []
        try:
            for number in range(min(threads, hsm.max_threads)):
                self._lanes.append(Lane(hsm, number, self._pieces, self._finished))
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

    def admit(self) -> None:
        """Raises Exhausted (OVERLOADED) when another frame would wait too long for its turn.

        Asked before a frame costs anything. Idle lanes take whatever comes.
        """
        wait = self.waiting * self.pace() / len(self._lanes)
        if wait > self._longest_wait:
            raise Exhausted(
                "OVERLOADED",
                "This signer has more to sign than it can in time.",
                next_step="Try another signer, or send less.",
                retry_after=wait,
            )

    def sign(
        self, key: Handles, digests: Sequence[bytes], deadline: float = inf
    ) -> "asyncio.Future[list[bytes]]":
        """64 bytes r||s for each 32-byte digest of one frame, in their order.

        deadline: of the monotonic clock. Fails with KmsdError: Unavailable when the HSM is lost,
        Late when the deadline passes first.
        """
        count = len(digests)
        size = -(-count // len(self._lanes))
        if len(self._lanes) > 1 and (pace := self.pace()):
            size = max(1, min(size, int(PIECE / pace)))
        starts = range(0, count, size)
        batch = Batch(key, count, len(starts), deadline)
        self.waiting += count
        self._batches.add(batch)
        batch.future.add_done_callback(lambda signed: self._signed(batch, count, signed))
        if not self._leaving:
            asyncio.get_running_loop().call_soon(self._leave)
        self._leaving.extend((batch, start, digests[start : start + size]) for start in starts)
        return batch.future

    def watch(self, now: float) -> None:
        """Loses an HSM that hangs: `now` and then, by the monotonic clock."""
        for lane in self._lanes:
            signed, since = self._progress.get(lane.number, (-1, now))
            if not lane.at_work or lane.signed != signed:
                self._progress[lane.number] = (lane.signed, now)
            elif now - since > SILENCE:
                self._lose(
                    Unavailable(
                        "HSM_SILENT", f"The HSM has not answered for {SILENCE:g} s and is given up."
                    )
                )

    def close(self) -> bool:
        """Signs what waits, then closes every session; the login is closed after this.

        False when a lane hangs in the HSM: its module cannot be closed then, its process must end.
        """
        self._leave()
        for _ in self._lanes:
            self._pieces.put(None)
        closed = [lane.close() for lane in self._lanes]
        return all(closed)

    def pace(self) -> float:
        """Seconds that a signature takes one lane of late; 0.0 before the first."""
        return sum(lane.pace for lane in self._lanes) / len(self._lanes)

    def _leave(self) -> None:
        """All that one round of the event loop brought leaves together: a lane that is woken for
        each takes the interpreter's lock from the loop for each."""
        with suppress(IndexError):  # it is empty
            while True:
                self._pieces.put(self._leaving.popleft())

    def _signed(self, batch: Batch, count: int, signed: "asyncio.Future[list[bytes]]") -> None:
        self.waiting -= count
        self._batches.discard(batch)
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
            for batch in self._batches:
                if not batch.future.done():
                    batch.future.set_exception(error)
