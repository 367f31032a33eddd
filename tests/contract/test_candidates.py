"""What becomes of an order that meets an error, on a real store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from kmsd.candidates import PATIENCE, Candidates
from kmsd.errors import KmsdError, PeerRefused, Unavailable
from kmsd.issuers import Ask, Later
from kmsd.model import Active, Authorized, Credential, Finalizing, Ordered, State, Trouble
from kmsd.settings import Profile
from kmsd.standing import REVOKED, Distrusted
from kmsd.store import Store
from tests.unit.test_enrollment import BIRTH, CERTIFICATE, FRESH, NOW

DOWN = Unavailable("ACME_UNREACHABLE", "It does not answer.")
LIMITED = Unavailable("ACME_RATE_LIMITED", "Not so fast.", retry_after=100)
REFUSED = PeerRefused("ACME_BAD_CSR", "No.", peer="sti-ca", problem="words", resource="finalize")
NO_PROOF = PeerRefused("ACME_UNAUTHORIZED", "Not yours.", peer="sti-ca", resource="challenge")
EXPIRED = PeerRefused("ACME_ORDER_INVALID", "Gone.", peer="sti-ca", cause="")
NONCES = Unavailable("ACME_BAD_NONCE", "Again and again.")
NO_ACCOUNT = Unavailable("ACME_ACCOUNT_DOES_NOT_EXIST", "It is made anew.")
NOT_THEIRS = (
    Unavailable("STI_PA_UNREACHABLE", "It does not answer."),
    PeerRefused("STI_PA_REFUSED", "No.", peer="sti-pa"),
    Unavailable("HSM_LOST", "It is gone."),
)
UNDER_WAY = (
    Ordered(BIRTH, "first", "https://first/1"),
    Authorized(BIRTH, "first", "https://first/1"),
    Finalizing(BIRTH, "first", "https://first/1"),
)


class Room:
    """Candidates whose clock the test sets."""

    def __init__(self, store: Store) -> None:
        self.now = NOW
        self.store = store
        profiles = {
            name: Profile("1234", "pa", issuers)
            for name, issuers in {"acme": ("first", "second"), "alone": ("first",)}.items()
        }
        self.candidates = Candidates(profiles, store, lambda: self.now)

    async def left(self, error: KmsdError, state: State, *, attempt: int = 1) -> bool:
        """Whether the order is given up at this attempt."""
        return await self.abandons(at(state, attempt), error)

    async def abandons(self, credential: Credential, error: KmsdError) -> bool:
        given_up = await self.candidates.given_up(credential, error)
        if given_up is not None:
            assert (given_up.issuer, given_up.reason) == ("first", error.reason)
        return given_up is not None


def at(state: State, attempt: int = 1, profile: str = "acme") -> Credential:
    trouble = Trouble("R", "m", NOW, attempt - 1, NOW) if attempt > 1 else None
    return replace(FRESH, state=state, trouble=trouble, profile=profile)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with Store.open(f"sqlite:///{tmp_path}/kmsd.db") as store:
        yield Room(store)


@pytest.mark.parametrize("state", UNDER_WAY, ids=lambda state: type(state).__name__)
async def test_an_order_that_is_refused_is_given_up_while_another_may_issue(
    room: Room, state: State
) -> None:
    assert await room.left(REFUSED, state)
    assert await room.candidates.choose("acme") == Ask("second", ("first",))
    assert not await room.abandons(at(state, profile="alone"), REFUSED)


async def test_when_all_have_refused_the_order_is_left_to_fail(room: Room) -> None:
    await room.candidates.fared("acme", "second", REFUSED)
    assert not await room.left(REFUSED, UNDER_WAY[1])


@pytest.mark.parametrize("error", [DOWN, LIMITED], ids=lambda error: error.reason)
@pytest.mark.parametrize("state", UNDER_WAY, ids=lambda state: type(state).__name__)
async def test_an_order_whose_issuer_does_not_answer_is_waited_for_a_while(
    room: Room, state: State, error: KmsdError
) -> None:
    patience = PATIENCE[type(state)]
    assert not await room.left(error, state, attempt=patience - 1)
    assert await room.left(error, state, attempt=patience)
    assert not await room.abandons(at(state, patience, "alone"), error)


async def test_an_order_is_not_given_up_for_an_issuer_that_does_not_answer_either(
    room: Room,
) -> None:
    await room.candidates.fared("acme", "second", DOWN)
    assert not await room.left(LIMITED, UNDER_WAY[0], attempt=9)


@pytest.mark.parametrize("error", [EXPIRED, NO_ACCOUNT], ids=lambda error: error.reason)
async def test_an_order_that_is_gone_is_made_again_at_the_same_issuer(
    room: Room, error: KmsdError
) -> None:
    assert await room.abandons(at(UNDER_WAY[0], profile="alone"), error)
    assert await room.candidates.choose("alone") == Ask("first")


async def test_an_order_is_not_given_up_for_a_nonce(room: Room) -> None:
    assert not await room.left(NONCES, UNDER_WAY[2], attempt=20)


async def test_a_refused_spc_token_is_followed_by_a_fresh_one_once(room: Room) -> None:
    alone = at(UNDER_WAY[0], profile="alone")
    assert await room.abandons(alone, NO_PROOF)
    assert await room.candidates.choose("alone") == Ask("first")
    assert not await room.abandons(alone, NO_PROOF)
    assert isinstance(await room.candidates.choose("alone"), Later)


async def test_a_rehearsal_ends_with_its_order(room: Room) -> None:
    assert not await room.abandons(replace(at(UNDER_WAY[0]), rehearsal=True), REFUSED)
    assert await room.candidates.healths("acme") == ()


@pytest.mark.parametrize("error", NOT_THEIRS, ids=lambda error: error.reason)
async def test_what_is_not_the_issuers_doing_moves_no_order(room: Room, error: KmsdError) -> None:
    assert not await room.left(error, UNDER_WAY[0], attempt=99)
    assert await room.candidates.healths("acme") == ()


async def test_who_does_what_it_was_asked_for_is_well_again(room: Room) -> None:
    await room.candidates.fared("acme", "first", DOWN)
    await room.candidates.fared("acme", "first", REFUSED)
    known = await room.candidates.healths("acme")
    assert [(one.issuer, one.profile) for one in known] == [("first", ""), ("first", "acme")]
    await room.candidates.well("first", "", known)
    assert isinstance(await room.candidates.choose("alone"), Ask)
    assert await room.candidates.choose("acme") == Ask("second", ("first",))
    await room.candidates.well("first", "acme", known)
    assert await room.candidates.healths("acme") == ()


async def test_the_issuer_of_a_disowned_credential_is_avoided(room: Room) -> None:
    certificate = replace(CERTIFICATE, issuer="first")
    active = replace(FRESH, state=Active(BIRTH, certificate, "https://cr/1", NOW, 1))
    room.store.insert(active)
    assert await room.candidates.choose("acme") == Ask("first")
    room.store.agenda.say(Distrusted(active.id, "acme", "first", REVOKED, "On the CRL.", NOW))
    assert await room.candidates.choose("acme") == Ask("second")
    await room.candidates.fared("acme", "second", DOWN)
    assert isinstance(await room.candidates.choose("acme"), Later)


async def test_a_place_is_kept_for_so_many_at_one_issuer_and_others_are_not_held_up(
    room: Room,
) -> None:
    first = room.candidates.slot("first")
    while not first.locked():
        await first.acquire()
    assert room.candidates.slot("first") is first
    assert not room.candidates.slot("second").locked()
