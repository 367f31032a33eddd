"""The keeper's own decisions, on a real store and a real keyring."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from kmsd import keyring
from kmsd.enrollment import DestroyAsked, Superseded, advance
from kmsd.errors import Precondition, Unavailable
from kmsd.keeper import Keeper
from kmsd.keypool import KeyPool
from kmsd.model import Credential, New, Retired, Revocation
from kmsd.movers import Movers
from kmsd.renewal import Suggestion, Window
from kmsd.settings import Configuration, Profile, Repository
from kmsd.settings import Keeper as KeeperSettings
from kmsd.standing import REVOKED, Distrusted
from kmsd.store import Event, Store
from kmsd.switch import Switch, entry_of
from tests.unit.test_enrollment import NOW, OUTCOMES, walk

ACTIVE = walk(*OUTCOMES[:7])


class Advice:
    """Nobody says anything; asked: whose STI-CA was asked when to renew it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, credential: Credential) -> None:
        self.asked.append(credential.id)

    async def judge(self) -> None:
        pass


class Room:
    """A keeper whose clock the test sets."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.now = NOW
        self.store = store
        self.folder = folder
        self.switch = Switch(store, folder / "keyring", folder / "run")
        configuration = Configuration(
            repository=Repository(public_url="https://cr.example/"),
            keeper=KeeperSettings(tick_seconds=0.01),
            authorities={},
            issuers={},
            profiles={},
        )
        steps = cast(Any, None)  # nothing moves here
        self.movers = Movers({}, store, steps, self.switch, self.clock)
        self.advice = Advice()
        advice = cast(Any, self.advice)
        pool = KeyPool({}, store, cast(Any, None), self.clock)  # nothing is made here
        self.keeper = Keeper(
            configuration, store, self.movers, advice, pool, self.switch, self.clock
        )

    def clock(self) -> int:
        return self.now

    def keep(self, credential: Credential) -> Credential:
        self.store.insert(replace(credential, version=0))
        return self.store.credential(credential.id)

    def signed_with(self) -> list[str]:
        return [entry.credential for entry in keyring.read(self.folder / "keyring").entries]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with Store.open(f"sqlite:///{tmp_path}/kmsd.db") as store:
        yield Room(tmp_path, store)


async def test_a_destruction_is_taken_back_until_its_time_and_not_after(room: Room) -> None:
    retired = advance(ACTIVE, Superseded(NOW + 10), NOW)
    doomed = room.keep(advance(retired, DestroyAsked(NOW + 100), NOW))
    room.now = NOW + 100
    with pytest.raises(Precondition, match="The time for that is over") as refused:
        await room.keeper.restore(doomed)
    assert refused.value.reason == "CREDENTIAL_STATE"
    assert room.store.credential(doomed.id) == doomed
    room.now = NOW + 99
    assert isinstance((await room.keeper.restore(doomed)).state, Retired)


async def test_what_was_revoked_is_withdrawn_again_where_that_failed(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.switch._writer.switch(1, [entry_of(ACTIVE)])
    active = room.keep(ACTIVE)

    async def full(credential: Credential) -> None:
        raise Unavailable("KEYRING_NOT_WRITTEN", "The disk is full.")

    with monkeypatch.context() as disk:
        disk.setattr(room.switch, "withdraw", full)
        with pytest.raises(Unavailable):
            await room.keeper.revoked(active, Revocation(NOW, 4))
        assert room.signed_with() == [active.id]
    await room.keeper._tick()
    assert room.signed_with() == []
    await room.movers.close()


async def test_who_listens_to_an_enrollment_is_told_when_another_keeper_goes_on(
    room: Room,
) -> None:
    coming = room.keep(walk(*OUTCOMES[:2]))
    told = room.movers.news(coming.id)
    assert (await anext(told)).credential == coming
    waiting = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0)
    await room.movers.close()  # the keeper stops, and acts still
    await asyncio.sleep(0.01)
    assert not waiting.done()
    room.store.resign()
    await room.movers.close()
    with pytest.raises(Unavailable) as refusal:
        await waiting
    assert refusal.value.reason == "KEEPER_STANDS_BY"
    for change in (room.keeper.begin("acme", rotate=True), room.keeper.schedule_destroy(coming)):
        with pytest.raises(Unavailable):
            await change
    assert room.store.credentials() == (coming,)


async def test_the_keyring_follows_the_store_while_another_keeper_acts(room: Room) -> None:
    room.keeper._profiles = {ACTIVE.profile: cast(Any, None)}
    await room.keeper.follow()
    active = room.keep(ACTIVE)
    epoch = room.store.epoch()
    room.store.record(Event(NOW, "Activate", credential=active.id))
    room.store.resign()
    await room.keeper.follow()
    assert room.signed_with() == [active.id]
    assert room.store.epoch() == epoch  # nothing is written there
    (room.folder / "keyring").rename(room.folder / "aside")
    await room.keeper.follow()  # nothing has happened: nothing is read but that
    assert not (room.folder / "keyring").exists()


def copied(credential: Credential, profile: str, number: int) -> Credential:
    """The same, of another profile."""
    return replace(
        credential, id=f"{number:016x}", key_id=f"{number:032x}", profile=profile, version=0
    )


def with_profiles(room: Room, *names: str) -> None:
    profiles = {name: Profile("1234", "pa", ("ca",)) for name in names}
    room.keeper._profiles = profiles
    room.movers._profiles = profiles


async def test_a_tick_plans_once_and_then_reads_what_is_due_alone(room: Room) -> None:
    names = [f"p{number}" for number in range(220)]
    with_profiles(room, *names)
    for number, name in enumerate(names, 1):
        room.store.insert(copied(ACTIVE, name, number))
    await room.keeper._tick()
    asked = room.advice.asked
    assert len(asked) == 220  # in more than one transaction
    assert room.store.agenda.plans_due(room.now, limit=1) == ()
    await room.keeper._tick()
    assert len(asked) == 220
    room.now += 3600  # no answer: it is asked again
    await room.keeper._tick()
    assert len(asked) == 440


async def test_a_renewal_is_begun_when_it_is_due_and_once(room: Room) -> None:
    with_profiles(room, "acme")
    active = room.keep(ACTIVE)
    moved: list[str] = []
    cast(Any, room.movers).move = moved.append
    await room.keeper._tick()
    assert room.store.credentials() == (active,)
    room.now += 80 * 86_400
    for _ in range(3):
        await room.keeper._tick()
        room.now += 5
    coming, old = room.store.credentials()
    assert (old.id, type(coming.state)) == (active.id, New)
    assert set(moved) == {coming.id}


async def test_what_an_issuer_suggests_moves_the_plan_and_what_it_says_no_more_moves_it_back(
    room: Room,
) -> None:
    with_profiles(room, "acme")
    active = room.keep(ACTIVE)
    cast(Any, room.movers).move = lambda _: None
    later = room.now + 10**7
    room.store.agenda.say(Suggestion(active.id, later, Window(NOW + 100, NOW + 101)))
    await room.keeper._tick()
    assert room.advice.asked == []
    assert room.store.agenda.plans_due(NOW + 99, limit=1) == ()
    assert room.store.agenda.plans_due(NOW + 100, limit=1) == ("acme",)
    room.store.agenda.say(Suggestion(active.id, later, Window(NOW + 1000, NOW + 1001)))
    room.now += 500
    await room.keeper._tick()
    assert room.store.credentials() == (active,)
    room.now += 500
    await room.keeper._tick()
    assert len(room.store.credentials()) == 2


async def test_a_disowned_credential_is_replaced_at_once(room: Room) -> None:
    with_profiles(room, "acme")
    active = room.keep(ACTIVE)
    cast(Any, room.movers).move = lambda _: None
    room.store.agenda.say(Distrusted(active.id, "acme", "ca", REVOKED, "On the CRL.", NOW))
    await room.keeper._tick()
    assert len(room.store.credentials()) == 2
