"""Where a signer's HSM work happens: lanes, each one thread with one HSM session of its own.

Work moves to a lane per frame, never per signature, so that a slow HSM stops neither the event
loop nor the health check. A frame whose caller has gone is dropped while it waits. The first
lost HSM is told to `on_loss`, once; the process is then replaced (a PKCS#11 module is not
re-initialised under running signatures).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

from kmsd.errors import Exhausted, KmsdError, Unavailable
from kmsd.hsm import Handle, Hsm, Session
from kmsd.keyring import Entry

Handles = tuple[Handle, ...]
"""One key as each lane knows it, in the order of the lanes."""
TOGETHER = 0.0005
"""Seconds for which a lane gathers what it has done, so that under load many lone signatures cost
one wake-up of the event loop."""

Job: TypeAlias = "tuple[asyncio.Future[Any], Callable[[], Any]]"


class Lane:
    """One thread, one session. `waiting`: signatures asked for and not yet made."""

    def __init__(self, hsm: Hsm, number: int) -> None:
        """Blocks until the session is open. Raises Unavailable."""
        self.number = number
        self.waiting = 0
        self._pace = 0.0
        self._session: Session = hsm.session()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # A daemon: a thread that hangs in the HSM must not keep its process from being replaced.
        self._thread = Thread(target=self._work, name=f"lane-{number}", daemon=True)
        self._thread.start()

    async def load(self, entries: Sequence[Entry]) -> list[Handle | KmsdError]:
        """Finds the keys and checks them; for each entry its handle, or why it cannot sign."""
        found: list[Handle | KmsdError] = await self._do(lambda: self._load(entries))
        return found

    def sign(self, handle: Handle, digests: Sequence[bytes]) -> "asyncio.Future[list[bytes]]":
        """64 bytes r||s for each 32-byte digest, in their turn. Fails with KmsdError."""
        count = len(digests)
        self.waiting += count
        signing = self._do(lambda: self._sign(handle, digests))
        signing.add_done_callback(lambda _: self._made(count))
        return signing

    def wait(self, more: int) -> float:
        """Seconds until `more` further signatures would be made, by the pace of late."""
        return (self.waiting + more) * self._pace

    def close(self) -> None:
        """Waits for what it has, then closes the session (and not the login)."""
        self._jobs.put(None)
        self._thread.join()
        self._session.close()

    def _made(self, count: int) -> None:
        self.waiting -= count

    def _do(self, work: Callable[[], Any]) -> "asyncio.Future[Any]":
        future = asyncio.get_running_loop().create_future()
        self._jobs.put((future, work))
        return future

    def _work(self) -> None:
        """The thread: job after job, until None."""
        job = self._jobs.get()
        while job is not None:
            enough = time.perf_counter() + TOGETHER
            done = []
            while job is not None:
                done.append((job[0], _outcome(job)))
                if self._jobs.empty() or time.perf_counter() > enough:
                    break
                job = self._jobs.get()
            try:
                done[0][0].get_loop().call_soon_threadsafe(_tell, done)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            if job is not None:
                job = self._jobs.get()

    def _load(self, entries: Sequence[Entry]) -> list[Handle | KmsdError]:
        found: list[Handle | KmsdError] = []
        for entry in entries:
            try:
                found.append(self._session.load(entry.key_id, entry.spki_sha256))
            except KmsdError as error:
                found.append(error)
        return found

    def _sign(self, handle: Handle, digests: Sequence[bytes]) -> list[bytes]:
        sign = self._session.sign
        begun = time.perf_counter()
        signatures = [sign(handle, digest) for digest in digests]
        self._pace += 0.2 * ((time.perf_counter() - begun) / len(digests) - self._pace)
        return signatures


def _outcome(job: Job) -> Any:
    """What the job gives, or the exception it ends with; None for one nobody waits for."""
    future, work = job
    if future.cancelled():
        return None
    try:
        return work()
    except Exception as error:
        return error


def _tell(done: "list[tuple[asyncio.Future[Any], Any]]") -> None:
    for future, outcome in done:
        if future.done():  # cancelled meanwhile
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class Lanes:
    """The lanes of one signer: `threads` of them, or as many as the module bears.

    longest_wait: seconds a frame may wait for its turn; `admit` refuses one that would wait longer,
    so that what is accepted stays quick. Opening blocks: it is no work for the event loop.
    Raises Unavailable.
    """

    def __init__(
        self, hsm: Hsm, threads: int, *, longest_wait: float, on_loss: Callable[[KmsdError], None]
    ) -> None:
        self._longest_wait = longest_wait
        self._on_loss = on_loss
        self._lost = False
        self._lanes: list[Lane] = []
        try:
            for number in range(min(threads, hsm.max_threads)):
                self._lanes.append(Lane(hsm, number))
        except BaseException:
            self.close()
            raise

    async def load(self, entries: Sequence[Entry]) -> list[Handles | KmsdError]:
        """Makes every lane ready to sign for `entries`; for each entry what `sign` wants, or why
        it cannot be signed with.
        """
        answers = await asyncio.gather(*(lane.load(entries) for lane in self._lanes))
        return [self._agreed(found) for found in zip(*answers, strict=True)]

    def admit(self, count: int) -> None:
        """Raises Exhausted (OVERLOADED) when `count` more signatures would wait too long.

        Asked before a frame costs anything. An idle lane takes whatever comes.
        """
        lane = min(self._lanes, key=lambda one: one.waiting)
        if lane.waiting and lane.wait(count) > self._longest_wait:
            raise Exhausted(
                "OVERLOADED",
                "This signer has more to sign than it can in time.",
                next_step="Try another signer, or send less.",
                retry_after_seconds=f"{lane.wait(0):.3f}",
            )

    def sign(self, key: Handles, digests: Sequence[bytes]) -> "asyncio.Future[list[bytes]]":
        """Signs one frame's digests, spread over the lanes that are free, else in the one with
        least to do. Fails with Unavailable when the HSM fails.
        """
        lanes = [lane for lane in self._lanes if not lane.waiting]
        if len(lanes) < 2:
            return self._sign(min(self._lanes, key=lambda one: one.waiting), key, digests)
        share = -(-len(digests) // len(lanes))
        parts = [digests[start : start + share] for start in range(0, len(digests), share)]
        signings = [self._sign(lane, key, part) for lane, part in zip(lanes, parts, strict=False)]
        return asyncio.ensure_future(_joined(signings))

    def _sign(
        self, lane: Lane, key: Handles, digests: Sequence[bytes]
    ) -> "asyncio.Future[list[bytes]]":
        signing = lane.sign(key[lane.number], digests)
        signing.add_done_callback(self._look)
        return signing

    def _look(self, signing: "asyncio.Future[list[bytes]]") -> None:
        if not signing.cancelled() and isinstance(error := signing.exception(), Unavailable):
            self._lose(error)

    def close(self) -> None:
        """Closes every session; the login belongs to the HSM and is closed after this."""
        for lane in self._lanes:
            lane.close()

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


async def _joined(signings: "Sequence[asyncio.Future[list[bytes]]]") -> list[bytes]:
    return [signature for part in await asyncio.gather(*signings) for signature in part]
