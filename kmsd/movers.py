"""What carries credentials through their machine: one task each, one at a time on each.

Perform, advance, persist, repeat: what is next is decided by `enrollment`, done by `steps`, and
durable in the store before the step after it begins. When a credential begins to move, and what
people may ask of it, is the `keeper`'s business.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from itertools import chain

import structlog
from msgspec.structs import replace

from kmsd.enrollment import (
    ON_THE_WAY,
    Action,
    Deferred,
    Ended,
    KeyMade,
    Outcome,
    Wait,
    advance,
    next_action,
    retire_others,
)
from kmsd.errors import KmsdError
from kmsd.model import Active, Credential, Value
from kmsd.preconditions import busy
from kmsd.rotation import holding_time
from kmsd.settings import Policy, Profile
from kmsd.steps import Steps
from kmsd.store import Event, Store
from kmsd.switch import Switch

GIVEN_UP_WITHIN = 5.0
"""Seconds that somebody who gives a credential up waits for the step that is under way."""

log = structlog.get_logger()


class News(Value, frozen=True):
    """One step of a credential, as it happened. reason: of what went wrong, or empty."""

    at: int
    credential: Credential
    reason: str = ""


class Movers:
    """The tasks, and who listens to them."""

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        store: Store,
        steps: Steps,
        switch: Switch,
        clock: Callable[[], int],
    ) -> None:
        self._profiles = profiles
        self._store = store
        self._steps = steps
        self._switch = switch
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._awake: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._insisted: set[str] = set()
        self._unwanted: set[str] = set()
        self._listeners: dict[str, set[asyncio.Queue[News | None]]] = {}

    def move(self, credential_id: str) -> None:
        """Sets a credential moving; one that moves already looks whether its time has come."""
        self._awake[credential_id].set()
        task = self._tasks.get(credential_id)
        if task is None or task.done():
            task = asyncio.create_task(self._move(credential_id))
            self._tasks[credential_id] = task
            task.add_done_callback(lambda ended: self._ended(credential_id, ended))

    def insist(self, credential_id: str) -> None:
        """The same, and its next step is not waited for: somebody has changed something."""
        self._insisted.add(credential_id)
        self.move(credential_id)

    async def give_up(self, credential: Credential) -> Credential:
        """Ends it between two steps; gives what it is then (active, if it was too late).

        Raises Unavailable (CREDENTIAL_BUSY) when a step takes long; it ends right after it.
        """
        self._unwanted.add(credential.id)
        self.insist(credential.id)
        done, _ = await asyncio.wait({self._tasks[credential.id]}, timeout=GIVEN_UP_WITHIN)
        if not done:
            raise busy(credential)
        return await asyncio.to_thread(self._store.credential, credential.id)

    async def news(self, credential_id: str) -> AsyncIterator[News]:
        """The credential as it is, and every step from then on until it is active or failed.

        Raises Unavailable KEEPER_STANDS_BY when another keeper takes the steps from now on.
        """
        queue: asyncio.Queue[News | None] = asyncio.Queue()
        listeners = self._listeners.setdefault(credential_id, set())
        listeners.add(queue)
        try:
            now = await asyncio.to_thread(self._store.credential, credential_id)
            told = News(self._clock(), now, now.trouble.reason if now.trouble else "")
            yield told
            while isinstance(told.credential.state, ON_THE_WAY):
                news = await queue.get()
                if news is None:
                    self._store.require_acting()
                elif news.credential.version > told.credential.version:  # not told by the first
                    told = news
                    yield told
        finally:
            listeners.discard(queue)
            if not listeners:
                self._listeners.pop(credential_id, None)

    def tell(self, news: News) -> None:
        """Tells who listens of a step that was taken elsewhere."""
        for queue in self._listeners.get(news.credential.id, ()):
            queue.put_nowait(news)

    def destroy_at(self, profile: str) -> int:
        """When a key of the profile is destroyed that is not needed any more from now on."""
        settings = self._profiles.get(profile)
        policy = settings.policy if settings else Policy()
        return self._clock() + holding_time(policy)

    async def close(self) -> None:
        """Stops everything where it is; what was stored goes on with the next keeper."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for queue in chain.from_iterable(self._listeners.values()):
            queue.put_nowait(None)

    def _ended(self, credential_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(credential_id) is task:
            del self._tasks[credential_id]
            self._awake.pop(credential_id, None)
            self._insisted.discard(credential_id)
            self._unwanted.discard(credential_id)
        if not task.cancelled() and (defect := task.exception()) is not None:
            log.error("mover_broke", credential=credential_id, exc_info=defect)

    async def _move(self, credential_id: str) -> None:
        """Perform, advance, persist, repeat, until there is nothing to do but wait."""
        awake = self._awake[credential_id]
        insists = False
        while True:
            try:
                credential = await asyncio.to_thread(self._store.credential, credential_id)
                if self._is_unwanted(credential) and self._may_end(credential):
                    await self._persist(credential, self._given_up(credential), "GiveUp")
                    return
                awake.clear()
                insists = insists or credential_id in self._insisted
                self._insisted.discard(credential_id)
                due = replace(credential, trouble=None) if insists else credential
                action = next_action(due, self._clock())
                if isinstance(action, Wait):
                    if not isinstance(credential.state, ON_THE_WAY):
                        return
                    await self._sleep(awake, action.until)
                    continue  # it is read again: it may have been revoked meanwhile
                self._store.require_acting()  # no step into the world by who was replaced
                outcome = await self._perform(credential, action, insists)
                await self._persist(credential, outcome, type(action).__name__)
                insists = insists and isinstance(outcome, KeyMade)  # it is the order they want
            except KmsdError as error:  # the store: nothing was changed, the step is repeated
                log.error("not_stored", credential=credential_id, reason=error.reason)
                await asyncio.sleep(5)

    def _is_unwanted(self, credential: Credential) -> bool:
        """Somebody gave it up, or its certificate was revoked before it was active."""
        return credential.id in self._unwanted or credential.revocation is not None

    def _may_end(self, credential: Credential) -> bool:
        """On its way, and no signer was told to sign with it yet."""
        on_the_way = isinstance(credential.state, ON_THE_WAY)
        return on_the_way and not self._switch.holds(credential)

    def _given_up(self, credential: Credential) -> Outcome:
        return Ended(
            "GIVEN_UP",
            "It was given up before it was active, as somebody asked.",
            destroy_at=self.destroy_at(credential.profile),
            next_step="kmsctl enroll or kmsctl rotate begins anew.",
        )

    async def _sleep(self, awake: asyncio.Event, until: int) -> None:
        """Until then, a minute at most, or until somebody says that it may be time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(awake.wait(), min(max(until - self._clock(), 0.2), 60))

    async def _perform(self, credential: Credential, action: Action, insists: bool) -> Outcome:
        try:
            return await self._steps.perform(credential, action, insisted=insists)
        except KmsdError:
            raise
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
        await self._switch.announce(after)
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
            self.tell(News(now, one, reason))

    async def _retired(self, active: Credential, now: int) -> list[Credential]:
        """The profile's former active credentials, retired by the new one."""
        destroy_at = self.destroy_at(active.profile)
        profile = await asyncio.to_thread(self._store.credentials, active.profile)
        return retire_others(active, profile, destroy_at, now)
