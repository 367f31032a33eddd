"""A rehearsal: a rotation that goes through everything up to activation, at a staging STI-CA.

A key is made, a real SPC token is used, a chain is issued, judged, published at a URL of its own,
fetched back, and a canary verified through it. Nothing is switched; afterwards key and chain are
taken away. What a staging STI-CA issues is trusted for that alone.
"""

import asyncio
import secrets
from collections.abc import Callable

from kmsd.enrollment import ON_THE_WAY
from kmsd.errors import Precondition
from kmsd.hsm import new_key_id
from kmsd.keeper import Keeper
from kmsd.model import Credential, New
from kmsd.movers import Movers
from kmsd.preconditions import unknown_profile
from kmsd.settings import Configuration, staged
from kmsd.store import Event, Store


class Rehearsal:
    """Of one store."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        keeper: Keeper,
        movers: Movers,
        clock: Callable[[], int],
    ) -> None:
        self._configuration = configuration
        self._store = store
        self._keeper = keeper
        self._movers = movers
        self._clock = clock

    async def begin(self, profile: str) -> Credential:
        """Starts a rehearsal and sets it moving; gives the one that is on its way already.

        Raises NotFound (PROFILE_UNKNOWN), Precondition (STAGING_NOT_CONFIGURED).
        """
        self._store.require_acting()
        settings = self._configuration.profiles.get(profile)
        if settings is None:
            raise unknown_profile(profile)
        if not staged(self._configuration, settings.issuers):
            raise Precondition(
                "STAGING_NOT_CONFIGURED",
                f"None of the STI-CAs of profile {profile} has a staging directory.",
                next_step="Set staging_directory (and staging_root) of an issuer.",
                profile=profile,
            )
        async with self._keeper.turn(profile):
            for one in await asyncio.to_thread(self._store.credentials, profile):
                if one.rehearsal and isinstance(one.state, ON_THE_WAY):
                    self._movers.insist(one.id)
                    return one
            now = self._clock()
            credential = Credential(
                id=secrets.token_hex(8),
                profile=profile,
                spc=settings.spc,
                key_id=new_key_id(),
                created=now,
                state=New(),
                rehearsal=True,
            )
            event = Event(now, "rehearse", profile=profile, credential=credential.id)
            await asyncio.to_thread(self._store.insert, credential, event)
        self._movers.move(credential.id)
        return credential
