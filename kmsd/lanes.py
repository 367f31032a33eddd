"""Where a signer's HSM work happens: lanes, each one thread with one HSM session of its own.

Work moves to a lane per frame, never per signature, so that a slow HSM stops neither the event
loop nor the health check. A lane that meets a lost HSM says so once to `on_loss`; the process is
then replaced (a PKCS#11 module is not re-initialised under running signatures).
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kmsd.errors import Exhausted, KmsdError, Unavailable
from kmsd.hsm import Handle, Hsm, Session
from kmsd.keyring import Entry


class Lane:
    """One thread, one session, the handles it has loaded. `waiting`: signatures not yet made."""

    def __init__(self, hsm: Hsm, number: int) -> None:
        self.waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"lane-{number}")
        self._session: Session = self._thread.submit(hsm.session).result()
        self._handles: dict[str, Handle] = {}

    async def load(self, entries: Sequence[Entry]) -> list[KmsdError | None]:
        """Finds the keys and checks them; for each entry the error, or None when it can sign."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load, entries)

    async def sign(self, key_id: str, digests: Sequence[bytes]) -> list[bytes]:
        """64 bytes r||s for each 32-byte digest. Raises Unavailable when the HSM is lost."""
        self.waiting += len(digests)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._sign, key_id, digests
            )
        finally:
            self.waiting -= len(digests)

    def forget(self, key_id: str) -> None:
        """Drops a handle that no keyring entry uses any more."""
        self._handles.pop(key_id, None)

    def close(self) -> None:
        """Waits for the frame in work, then closes the session (and not the login)."""
        self._thread.submit(self._session.close)
        self._thread.shutdown()

    def _load(self, entries: Sequence[Entry]) -> list[KmsdError | None]:
        errors: list[KmsdError | None] = []
        for entry in entries:
            try:
                self._handles[entry.key_id] = self._session.load(entry.key_id, entry.spki_sha256)
                errors.append(None)
            except KmsdError as error:
                errors.append(error)
        return errors

    def _sign(self, key_id: str, digests: Sequence[bytes]) -> list[bytes]:
        handle = self._handles[key_id]
        sign = self._session.sign
        return [sign(handle, digest) for digest in digests]


class Lanes:
    """The lanes of one signer. capacity: signatures that may wait; more are refused at once."""

    def __init__(
        self, hsm: Hsm, threads: int, *, capacity: int, on_loss: Callable[[KmsdError], None]
    ) -> None:
        self._hsm = hsm
        self._lanes = [Lane(hsm, number) for number in range(min(threads, hsm.max_threads))]
        self._capacity = capacity
        self._on_loss = on_loss

    async def load(self, entries: Sequence[Entry]) -> dict[str, KmsdError]:
        """Makes every lane ready to sign for `entries`; gives the key ids that cannot, and why."""
        answers = await asyncio.gather(*(lane.load(entries) for lane in self._lanes))
        return {
            entry.key_id: error
            for errors in answers
            for entry, error in zip(entries, errors, strict=True)
            if error is not None
        }

    async def sign(self, key_id: str, digests: Sequence[bytes]) -> list[bytes]:
        """Signs one frame's digests in the lane with least to do.

        Raises Exhausted (OVERLOADED) when too much waits already, Unavailable when the HSM fails.
        """
        lane = min(self._lanes, key=lambda one: one.waiting)
        if lane.waiting + len(digests) > self._capacity:
            raise Exhausted(
                "OVERLOADED",
                "This signer has more to sign than it can in time.",
                next_step="Try another signer, or send less.",
            )
        try:
            return await lane.sign(key_id, digests)
        except Unavailable as error:
            self._on_loss(error)
            raise

    def forget(self, key_id: str) -> None:
        """Drops the handles of a key."""
        for lane in self._lanes:
            lane.forget(key_id)

    def close(self) -> None:
        """Closes every session; the login belongs to the HSM and is closed after this."""
        for lane in self._lanes:
            lane.close()
