"""Keys made in advance, so that an enrollment does not wait for a slow HSM: a profile's `key_pool`.

A spare key's id is stored before the key exists, and a credential that takes it is stored in the
same change in which it stops being spare: whatever happens in between, no key is without a record.
Making it again finds it (`hsm`), so the credential's own first step reads it back and checks it.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import NoReturn

import structlog
from msgspec.structs import replace

from kmsd.errors import KmsdError, NotFound
from kmsd.hsm import Hsm, new_key_id
from kmsd.hsmthread import HsmThread
from kmsd.settings import Profile
from kmsd.store import Spare, Store

LOOK_EVERY = 10.0
"""Seconds between two looks at what is missing."""

log = structlog.get_logger()


class KeyPool:
    """Of all profiles of one store and HSM."""

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        store: Store,
        hsm: HsmThread,
        clock: Callable[[], int],
    ) -> None:
        self._profiles = profiles
        self._store = store
        self._hsm = hsm
        self._clock = clock
        self._taken: set[str] = set()

    async def run(self) -> NoReturn:
        """Keeps the pools full until it is cancelled."""
        while True:
            try:
                await self.fill()
            except KmsdError as error:  # HSM or store: they are full another time
                log.warning("key_pool", reason=error.reason)
            await asyncio.sleep(LOOK_EVERY)

    async def take(self, profile: str) -> str:
        """The key id for a new credential: of a spare key, else of none that exists yet."""
        for spare in await asyncio.to_thread(self._store.agenda.spares, profile):
            if spare.birth is not None and spare.key_id not in self._taken:
                self._taken.add(spare.key_id)
                return spare.key_id
        return new_key_id()

    async def fill(self) -> None:
        """Makes what is missing, and destroys what is too much: of profiles that are gone, or
        have a smaller pool. Raises as the HSM and the store do."""
        left = {name: settings.policy.key_pool for name, settings in self._profiles.items()}
        for spare in await asyncio.to_thread(self._store.agenda.spares):
            if spare.key_id in self._taken:
                continue
            left[spare.profile] = left.get(spare.profile, 0) - 1
            if left[spare.profile] < 0:
                await self._drop(spare)
            elif spare.birth is None:
                await self._make(spare)
        for profile, missing in left.items():
            for _ in range(missing):
                spare = Spare(new_key_id(), profile)
                await asyncio.to_thread(self._store.agenda.save_spare, spare)
                await self._make(spare)

    async def _make(self, spare: Spare) -> None:
        label = f"kmsd passport {spare.profile} {spare.key_id}"
        birth = await self._hsm(Hsm.generate, spare.key_id, label, self._clock())
        await asyncio.to_thread(self._store.agenda.save_spare, replace(spare, birth=birth))

    async def _drop(self, spare: Spare) -> None:
        self._taken.add(spare.key_id)  # by nobody, from now on
        # One that was about to be made may have been made: found by its id, or made for this.
        birth = spare.birth
        if birth is None:
            birth = await self._hsm(Hsm.generate, spare.key_id, "spare", self._clock())
        try:
            await self._hsm(Hsm.destroy, spare.key_id, birth.public_key)
        except NotFound:
            pass  # done before, by us or by a person
        except KmsdError:
            self._taken.discard(spare.key_id)
            raise
        await asyncio.to_thread(self._store.agenda.drop_spare, spare.key_id)
