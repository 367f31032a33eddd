"""The enrollment machine, walked along its table and beside it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kmsd.enrollment import (
    ON_THE_WAY,
    PATH,
    ChainAccepted,
    ChainPublic,
    CsrTaken,
    Deferred,
    DestroyAsked,
    DestroyKey,
    Ended,
    KeyGone,
    KeyMade,
    OrderPlaced,
    OrderReady,
    Outcome,
    RestoreAsked,
    Superseded,
    Switched,
    Wait,
    WrongOutcome,
    advance,
    birth_of,
    certificate_of,
    next_action,
    x5u_of,
)
from kmsd.model import (
    Active,
    BirthRecord,
    Certificate,
    Credential,
    Destroyed,
    Doomed,
    Failed,
    Keyed,
    New,
    Retired,
)

NOW = 1_800_000_000
BIRTH = BirthRecord("ab" * 16, "label", NOW, b"spki", {"CKA_SENSITIVE": True}, "m", "t", "s")
CERTIFICATE = Certificate("pem", "ca", "https://ca/order/1", "01", "cd" * 32, NOW, NOW + 90 * 86400)
X5U = "https://cr.example/1.pem"
FRESH = Credential("0" * 16, "acme", "1234", "ab" * 16, NOW, New())

OUTCOMES: tuple[Outcome, ...] = (
    KeyMade(BIRTH),
    OrderPlaced("ca", "https://ca/order/1"),
    OrderReady(),
    CsrTaken(),
    ChainAccepted(CERTIFICATE),
    ChainPublic(X5U),
    Switched(7),
    Superseded(NOW + 100),
    DestroyAsked(NOW + 200),
    RestoreAsked(),
    KeyGone(),
    Deferred("STI_CA_UNREACHABLE", "It did not answer."),
    Ended("CHAIN_NOT_ACCEPTED", "Another key.", NOW + 300),
)


def walk(*outcomes: Outcome, start: Credential = FRESH) -> Credential:
    for outcome in outcomes:
        start = advance(start, outcome, NOW)
    return start


def test_a_credential_walks_the_path_to_active() -> None:
    credential = walk(*OUTCOMES[:7])
    assert credential.state == Active(BIRTH, CERTIFICATE, X5U, since=NOW, epoch=7)


def test_every_step_of_the_table_is_what_the_machine_does() -> None:
    reached = {type(walk(*OUTCOMES[:n]).state): walk(*OUTCOMES[:n]) for n in range(10)}
    reached[Failed] = walk(KeyMade(BIRTH), OUTCOMES[12])
    for state, action, outcome, after in PATH:
        credential = reached[state]
        value = next(o for o in OUTCOMES if isinstance(o, outcome))
        late = NOW + 10_000 if action is DestroyKey else NOW
        assert isinstance(next_action(credential, late), action)
        assert isinstance(advance(credential, value, late).state, after)


def test_a_deferred_step_keeps_its_state_and_waits_longer_each_time() -> None:
    credential = FRESH
    pauses = []
    for _ in range(12):
        credential = advance(credential, Deferred("X", "y"), NOW)
        assert credential.trouble is not None
        assert next_action(credential, NOW) == Wait(until=credential.trouble.retry_at)
        pauses.append(credential.trouble.retry_at - NOW)
    assert credential.state == New()
    assert pauses == sorted(pauses)
    assert pauses[-1] == 600


def test_a_peer_that_asks_for_more_time_gets_it() -> None:
    credential = advance(FRESH, Deferred("X", "y", retry_after=3600), NOW)
    assert next_action(credential, NOW + 3599) == Wait(until=NOW + 3600)


def test_trouble_is_forgotten_when_the_step_succeeds() -> None:
    credential = walk(Deferred("X", "y"), KeyMade(BIRTH))
    assert credential.trouble is None


def test_a_failed_credential_names_the_step_and_keeps_the_key_until_its_time() -> None:
    credential = walk(KeyMade(BIRTH), Ended("R", "m", NOW + 5, problem="verbatim"))
    assert isinstance(credential.state, Failed)
    assert (credential.state.step, credential.state.problem) == ("keyed", "verbatim")
    assert next_action(credential, NOW + 4) == Wait(until=NOW + 5)
    assert next_action(credential, NOW + 5) == DestroyKey()


def test_a_credential_that_failed_before_it_had_a_key_needs_nothing_more() -> None:
    credential = walk(Ended("R", "m", NOW + 5))
    assert next_action(credential, NOW + 10**9) == Wait()


def test_a_scheduled_destruction_can_be_taken_back_and_the_key_survives_its_old_time() -> None:
    retired = walk(*OUTCOMES[:8])
    doomed = advance(retired, DestroyAsked(NOW + 200), NOW)
    assert isinstance(doomed.state, Doomed)
    restored = advance(doomed, RestoreAsked(), NOW + 150)
    assert isinstance(restored.state, Retired)
    assert isinstance(next_action(restored, NOW + 200), Wait)


def test_a_destroyed_credential_still_tells_what_it_was() -> None:
    gone = walk(*OUTCOMES[:8], KeyGone())
    assert gone.state == Destroyed(FRESH.key_id, NOW, BIRTH, CERTIFICATE, X5U)
    assert next_action(gone, NOW + 10**9) == Wait()


@given(st.lists(st.sampled_from(OUTCOMES), max_size=20), st.data())
def test_no_order_of_outcomes_gives_anything_but_a_state_of_the_table(
    outcomes: list[Outcome], data: st.DataObject
) -> None:
    credential = FRESH
    now = NOW
    for outcome in outcomes:
        now += data.draw(st.integers(0, 1000))
        before = credential
        try:
            credential = advance(credential, outcome, now)
        except WrongOutcome:
            assert credential is before
        next_action(credential, now)
        if isinstance(credential.state, Active):
            assert x5u_of(credential.state)
            assert certificate_of(credential.state)
        assert isinstance(credential.state, New) or birth_of(credential.state) in (BIRTH, None)


def test_only_a_credential_on_its_way_can_end() -> None:
    with pytest.raises(WrongOutcome):
        walk(*OUTCOMES[:7], OUTCOMES[12])


def test_the_states_before_active_are_those_the_path_leaves_without_being_asked() -> None:
    assert set(ON_THE_WAY) == {state for state, *_ in PATH[:7]}


def test_a_doomed_credential_knows_what_it_was() -> None:
    doomed = walk(*OUTCOMES[:9])
    assert certificate_of(doomed.state) == CERTIFICATE
    assert x5u_of(doomed.state) == X5U
    keyed = replace(FRESH, state=Keyed(BIRTH))
    assert certificate_of(keyed.state) is None
    assert x5u_of(keyed.state) == ""
