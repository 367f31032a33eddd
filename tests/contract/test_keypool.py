"""Keys made in advance, in a real token: none without a record, and none made twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmsd import settings
from kmsd.enrollment import DAY
from kmsd.errors import Unavailable
from kmsd.hsm import Hsm, new_key_id
from kmsd.hsmthread import HsmThread
from kmsd.keypool import KeyPool
from kmsd.model import Credential, New
from kmsd.settings import Policy, Profile
from kmsd.store import Spare, Store

NOW = 1_800_000_000


class Room:
    """A pool of two keys for acme, and none for the other profile."""

    def __init__(self, store: Store, hsm: HsmThread) -> None:
        self.store = store
        self.hsm = hsm
        self.profiles = {
            "acme": Profile("1234", "pa", ("ca",), policy=Policy(key_pool=2)),
            "other": Profile("1234", "pa", ("ca",)),
        }
        self.pool = self.restarted()

    def restarted(self) -> KeyPool:
        self.pool = KeyPool(self.profiles, self.store, self.hsm, lambda: NOW)
        return self.pool

    async def keys(self) -> frozenset[str]:
        """What is on the token."""
        inventory = await self.hsm(Hsm.inventory)
        return frozenset(inventory.ours)

    def spares(self) -> set[str]:
        return {spare.key_id for spare in self.store.agenda.spares()}

    def insert(self, key_id: str, profile: str = "acme") -> None:
        number = int(key_id[-8:], 16)
        self.store.insert(Credential(f"{number:016x}", profile, "1234", key_id, NOW, New()))


@pytest.fixture
async def room(tmp_path: Path, softhsm: settings.Hsm) -> AsyncIterator[Room]:
    hsm = HsmThread(softhsm, tmp_path)
    with Store.open(f"sqlite:///{tmp_path}/kmsd.db") as store:
        yield Room(store, hsm)
    await hsm.close()


async def test_a_pool_is_filled_once_and_what_is_taken_is_made_good(room: Room) -> None:
    await room.pool.fill()
    spares = room.spares()
    assert len(spares) == 2
    assert await room.keys() == spares
    await room.pool.fill()
    assert room.spares() == spares
    taken = await room.pool.take("acme")
    assert taken in spares
    room.insert(taken)
    await room.pool.fill()
    assert len(room.spares()) == 2
    assert await room.keys() == room.spares() | {taken}


async def test_a_spare_key_is_given_to_one_credential_alone(room: Room) -> None:
    await room.pool.fill()
    taken = [await room.pool.take("acme") for _ in range(3)]
    assert len(set(taken)) == 3
    assert set(taken[:2]) == room.spares()
    assert await room.pool.take("other") not in room.spares()


async def test_a_spare_key_is_what_the_credential_reads_back(room: Room) -> None:
    await room.pool.fill()
    made = {spare.key_id: spare.birth for spare in room.store.agenda.spares()}
    taken = await room.pool.take("acme")
    birth = await room.hsm(Hsm.generate, taken, "label", NOW + DAY)
    before = made[taken]
    assert before is not None
    assert birth.public_key == before.public_key


async def test_a_keeper_that_died_while_it_made_a_key_ends_with_that_key(room: Room) -> None:
    stored, made = Spare(new_key_id(), "acme"), Spare(new_key_id(), "acme")
    for spare in (stored, made):
        room.store.agenda.save_spare(spare)
    await room.hsm(Hsm.generate, made.key_id, "label", NOW)
    await room.restarted().fill()
    assert room.spares() == {stored.key_id, made.key_id}
    assert await room.keys() == room.spares()
    assert all(spare.birth for spare in room.store.agenda.spares())


async def test_what_no_profile_wants_any_more_is_destroyed(room: Room) -> None:
    await room.pool.fill()
    half = Spare(new_key_id(), "gone")
    room.store.agenda.save_spare(half)
    del room.profiles["acme"]
    await room.restarted().fill()
    assert room.spares() == set()
    assert await room.keys() == set()


async def test_a_pool_waits_for_an_hsm_that_is_away(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmsd.keypool.LOOK_EVERY", 0.01)

    def away(*_: object) -> None:
        raise Unavailable("HSM_LOST", "It is gone.")

    with monkeypatch.context() as gone:
        gone.setattr(Hsm, "generate", away)
        filling = asyncio.create_task(room.pool.run())
        await asyncio.sleep(0.2)
        assert not filling.done()
        assert await room.keys() == set()
    for _ in range(200):
        if len(room.spares()) == 2 and all(one.birth for one in room.store.agenda.spares()):
            break
        await asyncio.sleep(0.05)
    filling.cancel()
    await asyncio.gather(filling, return_exceptions=True)
    assert len(await room.keys()) == 2
