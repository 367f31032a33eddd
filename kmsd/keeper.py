"""The keeper: what moves when, and what people may ask of credentials.

Makes the plan of every profile (`rotation`) and sets `movers` going; brings the keyring in line
with the store when it starts. What the admin API asks for goes through the same doors.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection

import structlog
from msgspec.structs import replace

from kmsd.advice import Advice, hints
from kmsd.enrollment import (
    DAY,
    ON_THE_WAY,
    DestroyAsked,
    Outcome,
    RestoreAsked,
    Superseded,
    Wait,
    advance,
    next_action,
)
from kmsd.errors import KmsdError, Refused
from kmsd.keypool import KeyPool
from kmsd.model import (
    KEY_COMPROMISE,
    Active,
    Credential,
    Doomed,
    Failed,
    New,
    Retired,
    Revocation,
)
from kmsd.movers import Movers, News
from kmsd.preconditions import check_begin, unknown_profile, wrong_state
from kmsd.rotation import Expect, Keep, Renew, active_of, plan
from kmsd.settings import Configuration, Policy
from kmsd.store import Event, Known, Store
from kmsd.switch import Switch

PLANS_AT_ONCE = 200
"""Profiles whose plans are made in one transaction, for which nothing else is written."""
ASK_AGAIN = 3600
"""Seconds to the next question of an STI-CA that was asked when to renew, and is not heard of."""

log = structlog.get_logger()


class Keeper:
    """Of one store and one HSM; everything about credentials begins here."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        movers: Movers,
        advice: Advice,
        pool: KeyPool,
        switch: Switch,
        clock: Callable[[], int],
    ) -> None:
        self._profiles = configuration.profiles
        self._tick_seconds = configuration.keeper.tick_seconds
        self._store = store
        self._movers = movers
        self._advice = advice
        self._pool = pool
        self._switch = switch
        self._clock = clock
        self._withdrawn: dict[str, Credential] = {}
        self._followed: tuple[Event, ...] | None = None
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> None:
        """Keeps everything current until it is cancelled."""
        reconciled = False
        while True:
            try:
                if not reconciled:  # before the plan is made: the store says what is active
                    await self._reconcile()
                    await asyncio.to_thread(self._store.agenda.begin_anew)
                    reconciled = True
                await self._tick()
            except KmsdError as error:  # store or keyring: nothing was changed
                log.error("tick", reason=error.reason, message=error.message)
            await asyncio.sleep(self._tick_seconds)

    async def follow(self) -> None:
        """Brings this host's keyring in line with the store while another keeper acts.

        Cheap when nothing has happened: whatever changes a credential leaves an event.
        """
        newest = await asyncio.to_thread(self._store.events, limit=1)
        if newest != self._followed:
            await self._switch.follow(await self._configured())
            self._followed = newest

    async def begin(self, profile: str, *, rotate: bool, planned: bool = False) -> Credential:
        """Starts a new credential and sets it moving; gives the one that is on its way already,
        and tries its next step at once: whoever asks again has changed something.

        planned: nobody asked; then STI-CAs in back-off are not asked either.
        Raises NotFound (PROFILE_UNKNOWN), Precondition (PROFILE_ACTIVE: rotate instead;
        PROFILE_NOT_ENROLLED: enroll instead).
        """
        self._store.require_acting()
        settings = self._profiles.get(profile)
        if settings is None:
            raise unknown_profile(profile)
        async with self._turns[profile]:
            credentials = await asyncio.to_thread(self._store.credentials, profile)
            for credential in credentials:
                if isinstance(credential.state, ON_THE_WAY) and not credential.rehearsal:
                    self._movers.insist(credential.id)
                    return credential
            check_begin(profile, credentials, rotate=rotate)
            credential = Credential(
                id=secrets.token_hex(8),
                profile=profile,
                spc=settings.spc,
                key_id=await self._pool.take(profile),
                created=self._clock(),
                state=New(),
            )
            event = Event(
                self._clock(),
                "rotate" if rotate else "enroll",
                profile=profile,
                credential=credential.id,
            )
            await asyncio.to_thread(self._store.insert, credential, event)
        (self._movers.move if planned else self._movers.insist)(credential.id)
        return credential

    def turn(self, profile: str) -> asyncio.Lock:
        """Held by whoever decides what a profile's next credential is."""
        return self._turns[profile]

    async def schedule_destroy(self, credential: Credential) -> Credential:
        """The key goes when the profile's restore time is over. Raises Precondition.

        One that is still on its way is given up first: then the profile can begin anew. Raises
        Unavailable (CREDENTIAL_BUSY) when a step takes long; it is given up right after it.
        """
        self._store.require_acting()
        if isinstance(credential.state, ON_THE_WAY):
            credential = await self._movers.give_up(credential)
            if isinstance(credential.state, Failed) and credential.state.birth is None:
                return credential  # it had no key yet
        if isinstance(credential.state, Doomed):
            return credential
        if not isinstance(credential.state, Retired | Failed) or credential.state.birth is None:
            raise wrong_state(credential, "destroyed", "It signs, or it has no key.")
        settings = self._profiles.get(credential.profile)
        days = (settings.policy if settings else Policy()).restore_days
        return await self.apply(
            credential, DestroyAsked(self._clock() + int(days * DAY)), "destroy"
        )

    async def restore(self, credential: Credential) -> Credential:
        """Takes a scheduled destruction back. Raises Precondition."""
        if not isinstance(credential.state, Doomed):
            raise wrong_state(credential, "restored", "Its destruction is not scheduled.")
        if self._clock() >= credential.state.destroy_at:  # the key may be gone already
            raise wrong_state(credential, "restored", "The time for that is over.")
        return await self.apply(credential, RestoreAsked(), "restore")

    async def revoked(self, credential: Credential, revocation: Revocation) -> Credential:
        """Stores that the STI-CA took a revocation; an active one signs no more, and one on its
        way never will. A compromised key has no holding time.

        Raises Unavailable (SIGNER_BEHIND, and as the keyring's): it is stored, and asking again
        finishes it.
        """
        # As it is now: while the STI-CA was asked, it may have become active or been retired.
        credential = await asyncio.to_thread(self._store.credential, credential.id)
        if credential.revocation is None:
            credential = replace(credential, revocation=revocation, trouble=None)
            now = self._clock()
            if isinstance(credential.state, Active):
                destroy_at = self._movers.destroy_at(credential.profile)
                credential = advance(credential, Superseded(destroy_at), now)
            if revocation.reason == KEY_COMPROMISE:
                credential = _without_holding_time(credential, now)
            what = Event(
                revocation.at,
                "revoke",
                profile=credential.profile,
                credential=credential.id,
                detail={"reason": str(revocation.reason)},
            )
            credential = await asyncio.to_thread(self._store.save, credential, what)
        # After it is stored: a keeper that dies here withdraws it when it starts.
        self._withdrawn[credential.id] = credential
        await self._switch.withdraw(credential)
        self._withdrawn.pop(credential.id, None)  # a tick may have been quicker
        if isinstance(credential.state, ON_THE_WAY):
            self._movers.insist(credential.id)
        return credential

    async def apply(self, credential: Credential, outcome: Outcome, verb: str) -> Credential:
        """Advances a credential that does not move by itself."""
        now = self._clock()
        after = advance(credential, outcome, now)
        event = Event(now, verb, profile=credential.profile, credential=credential.id)
        saved = await asyncio.to_thread(self._store.save, after, event)
        self._movers.tell(News(now, saved))
        return saved

    async def _reconcile(self) -> None:
        await self._switch.reconcile(await self._configured())

    async def _configured(self) -> list[Credential]:
        credentials = await asyncio.to_thread(self._store.signable)
        return [c for c in credentials if c.profile in self._profiles]

    async def _tick(self) -> None:
        """Moves whatever has something to do and makes the plans that are due: the rest is not
        even read."""
        now = self._clock()
        idle = []
        for credential in await asyncio.to_thread(self._store.agenda.due, now):
            waits = isinstance(next_action(credential, now), Wait)
            if waits and not isinstance(credential.state, ON_THE_WAY):
                idle.append(credential)
            else:
                self._movers.move(credential.id)
        if idle:
            await asyncio.to_thread(self._store.agenda.put_off, idle)
        try:
            await self._advice.judge()
        except Refused as error:  # the list or the CRL cannot be read; the plans can be made
            log.error("not_judged", reason=error.reason, message=error.message)
        while profiles := await asyncio.to_thread(
            self._store.agenda.plans_due, now, limit=PLANS_AT_ONCE
        ):
            await self._plan(profiles, now)
        for credential in list(self._withdrawn.values()):
            # Its withdrawal failed when it was revoked (a full disk, a signer that hung).
            await self._switch.withdraw(credential)
            self._withdrawn.pop(credential.id, None)  # a tick may have been quicker

    async def _plan(self, profiles: Collection[str], now: int) -> None:
        renew: list[tuple[str, str]] = []
        ask: list[Credential] = []

        def decide(known: Known) -> int | None:
            settings = self._profiles.get(known.profile)
            active = active_of(known.credentials)
            if settings is None or active is None:
                return None
            said = known.suggestions.get(active.id)
            if said is None or said.ask_at <= now:
                ask.append(active)
            # An answer makes the plan due by itself; this is for where there is none.
            asked_at = said.ask_at if said and said.ask_at > now else now + ASK_AGAIN
            match plan(now, known.credentials, settings.policy, hints(known)):
                case Renew(why):
                    renew.append((known.profile, why))
                    return now + 1  # again, should it not come to it
                case Keep(until):
                    return min(until, asked_at)
                case Expect():
                    return asked_at

        await asyncio.to_thread(self._store.agenda.plan, profiles, decide)
        for credential in ask:
            self._advice.ask(credential)
        for profile, why in renew:
            log.info("renewal_due", profile=profile, why=why)
            try:
                await self.begin(profile, rotate=True, planned=True)
            except Refused as error:  # it was changed meanwhile: its plan is made again
                log.info("not_renewed", profile=profile, reason=error.reason)


def _without_holding_time(credential: Credential, now: int) -> Credential:
    match credential.state:
        case Retired() | Failed() | Doomed() as state:
            return replace(credential, state=replace(state, destroy_at=now))
        case _:
            return credential
