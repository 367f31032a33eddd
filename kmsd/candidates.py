"""The STI-CAs of a profile as candidates for its next order: how they fared is stored, so that a
restart knows.

Who is asked is `issuers`' decision; asking is `issuance`'s.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from kmsd import issuers
from kmsd.enrollment import Abandoned
from kmsd.errors import KmsdError, PeerRefused, Unavailable
from kmsd.failures import FailureClass
from kmsd.issuers import NO, Ask, Choice, Health, after_failure, all_refuse
from kmsd.model import Authorized, Credential, Finalizing, Ordered
from kmsd.rotation import patience
from kmsd.settings import Profile
from kmsd.store import Store

AT_ONCE = 16
"""Conversations with one STI-CA at the same time; the rest wait their turn."""
PATIENCE = {Ordered: 3, Authorized: 3, Finalizing: 8}
"""Attempts at an order whose STI-CA gives no answer, before another is asked: many where a
certificate may be there already, which would be paid for and never used."""


class Candidates:
    """Of all profiles."""

    def __init__(
        self, profiles: Mapping[str, Profile], store: Store, clock: Callable[[], int]
    ) -> None:
        self._profiles = profiles
        self._store = store
        self._clock = clock
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(AT_ONCE)
        )

    def slot(self, issuer: str) -> asyncio.Semaphore:
        """A place among those that may ask this STI-CA at the same time; to be entered."""
        return self._slots[issuer]

    async def choose(self, profile: str) -> Choice:
        """Who is asked now."""
        return issuers.choose(
            self._profiles[profile].issuers,
            await self.healths(profile),
            self._clock(),
            await self.avoid(profile),
        )

    async def healths(self, profile: str) -> tuple[Health, ...]:
        """How its STI-CAs fared."""
        return await asyncio.to_thread(self._store.agenda.healths, profile)

    async def avoid(self, profile: str) -> tuple[str, ...]:
        """STI-CAs whose certificate, the one the profile signs with, the STI-PA disowns."""
        active = await asyncio.to_thread(self._store.active, profile)
        if active is None:
            return ()
        found = await asyncio.to_thread(self._store.agenda.distrusted, active.id)
        return tuple(one.issuer for one in found)

    async def fared(self, profile: str, issuer: str, error: KmsdError) -> Health | None:
        """How it fares after `error` came of asking it; None when that is not its doing."""
        known = await self.healths(profile)
        now = self._clock()
        health = after_failure(known, issuer, profile, error, now)
        if health is None or health in known:
            return health
        active = await asyncio.to_thread(self._store.active, profile)
        if active is not None:  # nothing is waited for that its certificate would not outlast
            health = replace(health, until=min(health.until, now + patience(now, active)))
        await asyncio.to_thread(self._store.agenda.save_health, health)
        return health

    async def well(self, issuer: str, profile: str, known: Iterable[Health]) -> None:
        """It did what it was asked for. profile: "" for that it answers at all."""
        if any((health.issuer, health.profile) == (issuer, profile) for health in known):
            await asyncio.to_thread(self._store.agenda.forget_health, issuer, profile)

    async def given_up(self, credential: Credential, error: KmsdError) -> Abandoned | None:
        """What comes of an order that met `error`, where another one is to be made; None: the
        error is not the STI-CA's doing, may pass, or no other STI-CA is left. A rehearsal ends
        with its order."""
        match credential.state:
            case Ordered() | Authorized() | Finalizing() as state if not credential.rehearsal:
                issuer = state.issuer
            case _:
                return None
        health = await self.fared(credential.profile, issuer, error)
        if health is None or credential.profile not in self._profiles:
            return None
        match health.klass:
            case klass if klass in NO:
                # One that was forgiven is asked again, by a new order.
                names = self._profiles[credential.profile].issuers
                known = await self.healths(credential.profile)
                leaves = not all_refuse(names, known, self._clock())
            case FailureClass.STALE:
                gone = error.reason == "ACME_ACCOUNT_DOES_NOT_EXIST"
                leaves = gone or not isinstance(error, Unavailable)
            case _:
                attempts = 1 + (credential.trouble.attempts if credential.trouble else 0)
                leaves = attempts >= PATIENCE[type(credential.state)]
                if leaves:
                    other = await self.choose(credential.profile)
                    leaves = isinstance(other, Ask) and other.issuer != issuer
        if not leaves:
            return None
        return Abandoned(issuer, error.reason, error.message, error.next_step, problem=words(error))


def words(error: KmsdError) -> str:
    """The peer's own, where it was a peer."""
    return error.problem if isinstance(error, PeerRefused) else error.metadata.get("problem", "")
