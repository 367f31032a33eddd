"""The keeper: carries credentials through their machine, one task each, and keeps the plan.

Perform, advance, persist, repeat: what is next is decided by `enrollment` and `rotation`, done by
`steps`, and durable in the store before the step after it begins. What a person or the admin API
asks for goes through the same door.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

import structlog
from msgspec.structs import replace

from kmsd.enrollment import (
    DAY,
    ON_THE_WAY,
    Action,
    Deferred,
    DestroyAsked,
    Ended,
    Outcome,
    RestoreAsked,
    Superseded,
    Wait,
    advance,
    next_action,
)
from kmsd.errors import KmsdError
from kmsd.hsm import new_key_id
from kmsd.model import (
    Active,
    Credential,
    Doomed,
    Failed,
    New,
    Retired,
    Revocation,
    Value,
)
from kmsd.preconditions import busy, check_begin, unknown_profile, wrong_state
from kmsd.rotation import Renew, plan
from kmsd.settings import Configuration, Policy
from kmsd.steps import Steps
from kmsd.store import Event, Store
from kmsd.switch import Switch

GIVEN_UP_WITHIN = 5.0
"""Seconds that somebody who gives a credential up waits for the step that is under way."""
PROFILES_AT_ONCE = 16
"""Credentials that move at the same time; the rest wait their turn."""

log = structlog.get_logger()


class News(Value, frozen=True):
    """One step of a credential, as it happened. reason: of what went wrong, or empty."""

    at: int
    credential: Credential
    reason: str = ""


class Keeper:
    """Moves credentials. Several tasks run in it; each credential is moved by one at a time."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        steps: Steps,
        switch: Switch,
        clock: Callable[[], int],
    ) -> None:
        self._profiles = configuration.profiles
        self._tick_seconds = configuration.keeper.tick_seconds
        self._store = store
        self._steps = steps
        self._switch = switch
        self._clock = clock
        self._movers: dict[str, asyncio.Task[None]] = {}
        self._unwanted: set[str] = set()
        self._awake: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._slots = asyncio.Semaphore(PROFILES_AT_ONCE)
        self._listeners: dict[str, set[asyncio.Queue[News]]] = {}

    async def run(self) -> None:
        """Keeps everything current until it is cancelled."""
        reconciled = False
        try:
            while True:
                try:
                    if not reconciled:  # before anything moves: the store says what is active
                        await self._reconcile()
                        reconciled = True
                    await self._tick()
                except KmsdError as error:  # store or keyring: nothing was changed
                    log.error("tick", reason=error.reason, message=error.message)
                await asyncio.sleep(self._tick_seconds)
        finally:
            movers = list(self._movers.values())
            for mover in movers:
                mover.cancel()
            await asyncio.gather(*movers, return_exceptions=True)

    async def begin(self, profile: str, *, rotate: bool) -> Credential:
        """Starts a new credential and sets it moving; gives the one that is on its way already,
        and tries its next step at once: whoever asks again has changed something.

        Raises NotFound (PROFILE_UNKNOWN), Precondition (PROFILE_ACTIVE: rotate instead;
        PROFILE_NOT_ENROLLED: enroll instead).
        """
        settings = self._profiles.get(profile)
        if settings is None:
            raise unknown_profile(profile)
        async with self._turns[profile]:
            credentials = await asyncio.to_thread(self._store.credentials, profile)
            for credential in credentials:
                if isinstance(credential.state, ON_THE_WAY):
                    self.move(credential.id)
                    self._awake[credential.id].set()
                    return credential
            check_begin(profile, credentials, rotate=rotate)
            credential = Credential(
                id=secrets.token_hex(8),
                profile=profile,
                spc=settings.spc,
                key_id=new_key_id(),
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
        self.move(credential.id)
        return credential

    async def schedule_destroy(self, credential: Credential) -> Credential:
        """The key goes when the profile's restore time is over. Raises Precondition.

        One that is still on its way is given up first: then the profile can begin anew. Raises
        Unavailable (CREDENTIAL_BUSY) when a step takes long; it is given up right after it.
        """
        if isinstance(credential.state, ON_THE_WAY):
            credential = await self._give_up(credential)
            if isinstance(credential.state, Failed) and credential.state.birth is None:
                return credential  # it had no key yet
        if isinstance(credential.state, Doomed):
            return credential
        if not isinstance(credential.state, Retired | Failed) or credential.state.birth is None:
            raise wrong_state(credential, "destroyed", "It signs, or it has no key.")
        days = self._policy(credential.profile).restore_days
        return await self.apply(
            credential, DestroyAsked(self._clock() + int(days * DAY)), "destroy"
        )

    async def _give_up(self, credential: Credential) -> Credential:
        """Has the mover end it between two steps; gives what it is then."""
        self._unwanted.add(credential.id)
        self.move(credential.id)
        self._awake[credential.id].set()
        done, _ = await asyncio.wait({self._movers[credential.id]}, timeout=GIVEN_UP_WITHIN)
        if not done:
            raise busy(credential)
        return await asyncio.to_thread(self._store.credential, credential.id)

    async def restore(self, credential: Credential) -> Credential:
        """Takes a scheduled destruction back. Raises Precondition."""
        if not isinstance(credential.state, Doomed):
            raise wrong_state(credential, "restored", "Its destruction is not scheduled.")
        return await self.apply(credential, RestoreAsked(), "restore")

    async def revoked(self, credential: Credential, revocation: Revocation) -> Credential:
        """Stores that the STI-CA took a revocation; an active one signs no more.

        Raises Unavailable (SIGNER_BEHIND, and as the keyring's): it is stored, and asking again
        finishes it.
        """
        if credential.revocation is None:
            credential = replace(credential, revocation=revocation)
            if isinstance(credential.state, Active):
                credential = advance(
                    credential, Superseded(self._destroy_at(credential.profile)), self._clock()
                )
            what = Event(
                revocation.at,
                "revoke",
                profile=credential.profile,
                credential=credential.id,
                detail={"reason": str(revocation.reason)},
            )
            credential = await asyncio.to_thread(self._store.save, credential, what)
        # After it is stored: a keeper that dies here withdraws it when it starts.
        await self._switch.withdraw(credential)
        return credential

    async def apply(self, credential: Credential, outcome: Outcome, verb: str) -> Credential:
        """Advances a credential that does not move by itself."""
        now = self._clock()
        after = advance(credential, outcome, now)
        event = Event(now, verb, profile=credential.profile, credential=credential.id)
        saved = await asyncio.to_thread(self._store.save, after, event)
        self._tell(News(now, saved))
        return saved

    async def news(self, credential: Credential) -> AsyncIterator[News]:
        """The credential as it is, and every step from then on until it is active or failed."""
        queue: asyncio.Queue[News] = asyncio.Queue()
        listeners = self._listeners.setdefault(credential.id, set())
        listeners.add(queue)
        try:
            now = await asyncio.to_thread(self._store.credential, credential.id)
            news = News(self._clock(), now, now.trouble.reason if now.trouble else "")
            yield news
            while isinstance(news.credential.state, ON_THE_WAY):
                told = news.credential.version
                news = await queue.get()
                if news.credential.version > told:  # it may have been stored and told meanwhile
                    yield news
        finally:
            listeners.discard(queue)
            if not listeners:
                self._listeners.pop(credential.id, None)

    def move(self, credential_id: str) -> None:
        """Sets a credential moving, unless it moves already."""
        mover = self._movers.get(credential_id)
        if mover is None or mover.done():
            task = asyncio.create_task(self._move(credential_id))
            self._movers[credential_id] = task
            task.add_done_callback(lambda ended: self._moved(credential_id, ended))

    def _moved(self, credential_id: str, mover: asyncio.Task[None]) -> None:
        if self._movers.get(credential_id) is mover:
            del self._movers[credential_id]
            self._awake.pop(credential_id, None)
            self._unwanted.discard(credential_id)
        if not mover.cancelled() and (defect := mover.exception()) is not None:
            log.error("mover_broke", credential=credential_id, exc_info=defect)

    async def _reconcile(self) -> None:
        credentials = await asyncio.to_thread(self._store.credentials)
        configured = [c for c in credentials if c.profile in self._profiles]
        await self._switch.reconcile(configured)

    async def _tick(self) -> None:
        """Makes the plan of every profile, and moves whatever has something to do."""
        now = self._clock()
        credentials = await asyncio.to_thread(self._store.credentials)
        by_profile: defaultdict[str, list[Credential]] = defaultdict(list)
        for credential in credentials:
            by_profile[credential.profile].append(credential)
            waits = isinstance(next_action(credential, now), Wait)
            if not waits or isinstance(credential.state, ON_THE_WAY):
                self.move(credential.id)
        for profile, settings in self._profiles.items():
            if isinstance(plan(now, by_profile[profile], settings.policy), Renew):
                log.info("renewal_due", profile=profile)
                await self.begin(profile, rotate=True)

    async def _move(self, credential_id: str) -> None:
        """Perform, advance, persist, repeat, until there is nothing to do but wait."""
        while True:
            try:
                credential = await asyncio.to_thread(self._store.credential, credential_id)
                if credential_id in self._unwanted and self._may_end(credential):
                    await self._persist(credential, self._given_up(credential), "GiveUp")
                    return
                action = next_action(credential, self._clock())
                if isinstance(action, Wait):
                    if not isinstance(credential.state, ON_THE_WAY):
                        return
                    if not await self._woken(credential_id, action.until):
                        continue
                    if credential_id in self._unwanted:
                        continue
                    action = next_action(replace(credential, trouble=None), self._clock())
                async with self._slots:
                    outcome = await self._perform(credential, action)
                await self._persist(credential, outcome, type(action).__name__)
            except KmsdError as error:  # the store: nothing was changed, the step is repeated
                log.error("not_stored", credential=credential_id, reason=error.reason)
                await asyncio.sleep(5)

    def _may_end(self, credential: Credential) -> bool:
        """On its way, and no signer was told to sign with it yet."""
        on_the_way = isinstance(credential.state, ON_THE_WAY)
        return on_the_way and not self._switch.holds(credential)

    def _given_up(self, credential: Credential) -> Outcome:
        return Ended(
            "GIVEN_UP",
            "It was given up before it was active, as somebody asked.",
            destroy_at=self._destroy_at(credential.profile),
            next_step="kmsctl enroll or kmsctl rotate begins anew.",
        )

    async def _woken(self, credential_id: str, until: int) -> bool:
        """Waits; whether somebody wants the next step now."""
        awake = self._awake[credential_id]
        try:
            await asyncio.wait_for(awake.wait(), min(max(until - self._clock(), 0.2), 60))
        except TimeoutError:
            return False
        awake.clear()
        return True

    async def _perform(self, credential: Credential, action: Action) -> Outcome:
        try:
            return await self._steps.perform(credential, action)
        except Exception:
            # A defect. The credential stays where it is, visibly in trouble, and so do the others.
            log.exception("step_broke", credential=credential.id, action=type(action).__name__)
            return Deferred(
                "INTERNAL",
                f"The keeper could not carry out {type(action).__name__}: a defect of kmsd.",
                next_step="Report it with the keeper's log: journalctl -u kmsd-keeper",
            )

    async def _persist(self, credential: Credential, outcome: Outcome, action: str) -> None:
        now = self._clock()
        after = advance(credential, outcome, now)
        reason = getattr(outcome, "reason", "")
        event = Event(
            now,
            action,
            outcome=reason or "ok",
            profile=after.profile,
            credential=after.id,
            detail={"message": getattr(outcome, "message", "")} if reason else {},
        )
        changed = [after]
        if isinstance(after.state, Active):
            changed += await self._retired(after, now)
        saved = await asyncio.to_thread(self._store.save_all, changed, event)
        line = log.warning if reason else log.info
        line(
            "step",
            action=action,
            state=type(after.state).__name__.lower(),
            profile=after.profile,
            credential=after.id,
            outcome=reason or "ok",
        )
        for one in saved:
            self._tell(News(now, one, reason))

    async def _retired(self, active: Credential, now: int) -> list[Credential]:
        """The profile's former active credentials, retired by the new one."""
        destroy_at = self._destroy_at(active.profile)
        return [
            advance(former, Superseded(destroy_at), now)
            for former in await asyncio.to_thread(self._store.credentials, active.profile)
            if isinstance(former.state, Active) and former.id != active.id
        ]

    def _destroy_at(self, profile: str) -> int:
        return self._clock() + int(self._policy(profile).hold_key_days * DAY)

    def _policy(self, profile: str) -> Policy:
        settings = self._profiles.get(profile)
        return settings.policy if settings else Policy()

    def _tell(self, news: News) -> None:
        for queue in self._listeners.get(news.credential.id, ()):
            queue.put_nowait(news)
