"""What STI-CAs and the STI-PA say of our credentials, asked and kept; the store is real."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from kmsd.advice import Advice, hints
from kmsd.candidates import Candidates
from kmsd.errors import Invalid, KmsdError, PeerRefused, Unavailable
from kmsd.model import Active, Credential, RevocationList, TrustList
from kmsd.renewal import AFTER_FAILURE, LATEST, RenewalInfo, Suggestion, Window
from kmsd.settings import Authority, Configuration, Profile, Repository
from kmsd.standing import NOT_TRUSTED, REVOKED
from kmsd.store import Store
from tests.unit.sti import NOW, World, crl
from tests.unit.test_enrollment import BIRTH, CERTIFICATE, FRESH

WORLD, ANOTHER = World(), World()
WINDOW = Window(NOW + 100, NOW + 200)
STATE = Active(BIRTH, replace(CERTIFICATE, chain=WORLD.chain(serial=7)), "https://cr/1", NOW, 1)
ACTIVE = replace(FRESH, state=STATE)


class Peers:
    """An STI-CA that answers as the test says, and the versions of the trust material."""

    def __init__(self) -> None:
        self.answer: RenewalInfo | KmsdError | None = None
        self.asked = 0
        self.material = 0

    @asynccontextmanager
    async def issuer(self, profile: str, name: str) -> AsyncIterator[tuple["Peers", None]]:
        assert (profile, name) == ("acme", "ca")
        yield self, None

    async def renewal_info(self, certificate: bytes) -> RenewalInfo | None:
        assert certificate
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, KmsdError):
            raise self.answer
        return self.answer

    def version(self, authority: str) -> int:
        assert authority == "pa"
        return self.material


class Room:
    def __init__(self, store: Store) -> None:
        self.now = NOW
        self.store = store
        self.peers = Peers()
        profiles = {"acme": Profile("1234", "pa", ("ca",))}
        configuration = Configuration(
            repository=Repository(public_url="https://cr.example/"),
            authorities={"pa": Authority(url="https://pa.example/", root="root.pem")},
            issuers={},
            profiles=profiles,
        )
        peers = cast(Any, self.peers)
        candidates = Candidates(profiles, store, self.clock)
        self.advice = Advice(configuration, store, peers, candidates, peers, self.clock)
        store.insert(ACTIVE)

    def clock(self) -> int:
        return self.now

    async def suggestion(self, credential: Credential = ACTIVE) -> Suggestion | None:
        """Asked for, and what is known then."""
        self.advice.ask(credential)
        self.advice.ask(credential)  # once at a time
        await asyncio.gather(*self.advice._asking.values())
        return self.store.agenda.suggestion(credential.id)

    async def judged(self, roots: tuple[str, ...], *entries: Any) -> list[str]:
        """Reasons for which the credential is distrusted, by this list and CRL."""
        self.peers.material += 1
        self.store.save_trust_list(TrustList("pa", self.peers.material, NOW + 10, NOW, roots))
        der = crl(*entries).public_bytes(Encoding.DER)
        number = str(self.peers.material)
        self.store.save_revocation_list(RevocationList("pa", number, NOW + 10, NOW, der))
        await self.advice.judge()
        return [one.reason for one in self.store.agenda.distrusted()]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with Store.open(f"sqlite:///{tmp_path}/kmsd.db") as store:
        yield Room(store)


async def test_a_suggestion_is_kept_with_the_time_of_the_next_question(room: Room) -> None:
    room.peers.answer = RenewalInfo(WINDOW, "https://ca/why", 3600)
    said = await room.suggestion()
    assert said == Suggestion(ACTIVE.id, NOW + 3600, WINDOW, "https://ca/why")
    assert room.peers.asked == 1
    (known,) = room.store.agenda.known(["acme"])
    assert NOW + 100 <= hints(known).renew_at[ACTIVE.id] < NOW + 200
    assert hints(known).condemned == {}


async def test_an_sti_ca_without_renewal_information_is_asked_again_another_day(room: Room) -> None:
    assert await room.suggestion() == Suggestion(ACTIVE.id, NOW + LATEST)
    (known,) = room.store.agenda.known(["acme"])
    assert hints(known).renew_at == {}


async def test_a_failure_leaves_the_last_suggestion_and_is_tried_again_later_each_time(
    room: Room,
) -> None:
    room.peers.answer = RenewalInfo(WINDOW, "", 3600)
    await room.suggestion()
    room.peers.answer = Unavailable("ACME_UNREACHABLE", "It does not answer.")
    first, second = await room.suggestion(), await room.suggestion()
    assert first
    assert second
    assert (first.window, second.window) == (WINDOW, WINDOW)
    assert (first.failures, second.failures) == (1, 2)
    assert NOW < first.ask_at < second.ask_at
    room.peers.answer = PeerRefused("ACME_RENEWAL_WINDOW_INVALID", "No window.", peer="sti-ca")
    third = await room.suggestion()
    assert third == replace(second, failures=3, ask_at=NOW + AFTER_FAILURE)


async def test_what_cannot_be_stored_is_asked_again_with_the_next_plan(room: Room) -> None:
    room.store.resign()
    assert await room.suggestion() is None


async def test_nobody_is_asked_any_more_when_it_is_closed(room: Room) -> None:
    room.advice.ask(ACTIVE)
    await room.advice.close()
    assert room.store.agenda.suggestion(ACTIVE.id) is None


async def test_a_credential_is_distrusted_while_the_list_or_the_crl_says_so(room: Room) -> None:
    issuer = WORLD.ca.certificate.subject
    assert await room.judged(WORLD.roots) == []
    assert await room.judged(WORLD.roots, (issuer, 7)) == [REVOKED]
    (known,) = room.store.agenda.known(["acme"])
    assert hints(known).condemned == {ACTIVE.id: REVOKED}
    assert await room.judged(WORLD.roots, (issuer, 7), (issuer, 8)) == [REVOKED]
    assert await room.judged(ANOTHER.roots) == [NOT_TRUSTED]
    assert await room.judged((*ANOTHER.roots, *WORLD.roots)) == []
    told = [event.outcome for event in room.store.events(ACTIVE.id)]
    assert told == [NOT_TRUSTED, REVOKED]


async def test_nothing_is_looked_at_again_while_the_material_is_the_same(room: Room) -> None:
    await room.judged(WORLD.roots)
    room.store.save_trust_list(TrustList("pa", 9, NOW + 10, NOW, ANOTHER.roots))
    await room.advice.judge()
    assert room.store.agenda.distrusted() == ()
    room.peers.material += 1
    await room.advice.judge()
    assert [one.reason for one in room.store.agenda.distrusted()] == [NOT_TRUSTED]


async def test_nothing_is_distrusted_before_there_is_a_list(room: Room) -> None:
    await room.advice.judge()
    assert room.store.agenda.distrusted() == ()


async def test_a_list_that_cannot_be_read_is_told_once(room: Room) -> None:
    with pytest.raises(Invalid):
        await room.judged(("no root",))
    await room.advice.judge()
