"""The enrollment machine, walked along its table and beside it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kmsd.enrollment import (
    ON_THE_WAY,
    PATH,
    Abandoned,
    Activate,
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
    Passed,
    Recalled,
    RestoreAsked,
    Superseded,
    Switched,
    Try,
    Wait,
    WrongOutcome,
    advance,
    birth_of,
    certificate_of,
    may_be_recalled,
    next_action,
    retire_others,
    x5u_of,
)
from kmsd.model import (
    Active,
    BirthRecord,
    Certificate,
    Condemned,
    Credential,
    Destroyed,
    Doomed,
    Failed,
    Keyed,
    New,
    Published,
    Rehearsed,
    Retired,
    Revocation,
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
    Abandoned("ca", "ACME_SERVER_INTERNAL", "It broke."),
    Recalled(),
    Passed(),
)
REHEARSAL = replace(FRESH, rehearsal=True)


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
    reached[Rehearsed] = walk(*OUTCOMES[:6], Passed(), start=REHEARSAL)
    for state, action, outcome, after in PATH:
        credential = replace(reached[state], rehearsal=action is Try)
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


@given(
    st.sampled_from([FRESH, REHEARSAL]),
    st.lists(st.sampled_from(OUTCOMES), max_size=20),
    st.data(),
)
def test_no_order_of_outcomes_gives_anything_but_a_state_of_the_table(
    credential: Credential, outcomes: list[Outcome], data: st.DataObject
) -> None:
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
            assert not credential.rehearsal
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


def test_an_order_that_was_given_up_leaves_the_key_and_the_next_sti_ca_is_asked_at_once() -> None:
    ordered = walk(*OUTCOMES[:2])
    keyed = advance(ordered, Abandoned("ca", "REFUSED", "No.", "Ask them.", problem="no"), NOW)
    assert keyed.state == Keyed(BIRTH)
    assert keyed.abandoned == ("ca",)
    assert keyed.trouble is not None
    assert (keyed.trouble.reason, keyed.trouble.problem, keyed.trouble.retry_at) == (
        "REFUSED",
        "no",
        NOW,
    )
    assert next_action(keyed, NOW) == PATH[1][1]()


def test_sti_cas_that_fail_in_turns_are_asked_with_longer_and_longer_pauses() -> None:
    credential = walk(KeyMade(BIRTH))
    pauses = []
    for n in range(20):
        credential = walk(OrderPlaced("ab"[n % 2], "u"), start=credential)
        credential = advance(credential, Abandoned("ab"[n % 2], "R", "m"), NOW)
        assert credential.trouble is not None
        pauses.append(credential.trouble.retry_at - NOW)
    assert pauses[:4] == [0, 2, 6, 14]
    assert pauses[-1] == 600
    assert len(credential.abandoned) == 16


def test_only_an_order_can_be_given_up() -> None:
    with pytest.raises(WrongOutcome):
        walk(KeyMade(BIRTH), OUTCOMES[13])


def test_a_rehearsal_ends_before_the_switch_and_its_key_is_destroyed_at_once() -> None:
    published = walk(*OUTCOMES[:6], start=REHEARSAL)
    assert next_action(published, NOW) == Try()
    with pytest.raises(WrongOutcome):
        advance(published, Switched(7), NOW)
    rehearsed = advance(published, Passed(), NOW)
    assert rehearsed.state == Rehearsed(BIRTH, CERTIFICATE, X5U, at=NOW)
    assert next_action(rehearsed, NOW) == DestroyKey()
    assert isinstance(walk(KeyGone(), start=rehearsed).state, Destroyed)


def test_a_rehearsal_that_failed_leaves_no_key_behind() -> None:
    failed = walk(KeyMade(BIRTH), Ended("R", "m", NOW + 300), start=REHEARSAL)
    assert next_action(failed, NOW) == DestroyKey()


def test_what_is_no_rehearsal_cannot_pass_one() -> None:
    with pytest.raises(WrongOutcome):
        walk(*OUTCOMES[:6], Passed())


def test_a_retired_credential_is_recalled_through_canary_and_switch_as_ever() -> None:
    retired = walk(*OUTCOMES[:8])
    recalled = advance(retired, Recalled(), NOW)
    assert recalled.state == Published(BIRTH, CERTIFICATE, X5U, recalled=True)
    assert next_action(recalled, NOW) == Activate()
    active = advance(recalled, Switched(8), NOW).state
    assert isinstance(active, Active)
    assert active.recalled


def test_what_is_revoked_expired_or_about_to_lose_its_key_is_not_recalled() -> None:
    retired = walk(*OUTCOMES[:8])
    assert may_be_recalled(retired, NOW + 99)
    assert not may_be_recalled(retired, NOW + 100)
    later = walk(*OUTCOMES[:7], Superseded(NOW + 10**9))
    assert not may_be_recalled(later, CERTIFICATE.not_after)
    assert not may_be_recalled(replace(later, revocation=Revocation(NOW, 1)), NOW)
    assert not may_be_recalled(walk(*OUTCOMES[:7]), NOW)
    with pytest.raises(WrongOutcome):
        advance(retired, Recalled(), NOW + 100)


def test_who_becomes_active_retires_the_others_and_nobody_else() -> None:
    new, old = walk(*OUTCOMES[:7]), replace(walk(*OUTCOMES[:7]), id="1" * 16)
    (retired,) = retire_others(new, [new, old, FRESH], NOW + 50, NOW)
    assert retired.id == old.id
    assert retired.state == Retired(BIRTH, CERTIFICATE, X5U, since=NOW, destroy_at=NOW + 50)


def test_a_clock_that_was_set_back_makes_no_pause_longer() -> None:
    deferred = advance(FRESH, Deferred("X", "y"), NOW + 86_400)
    assert isinstance(next_action(deferred, NOW + 86_400), Wait)
    assert not isinstance(next_action(deferred, NOW), Wait)


def test_a_key_is_kept_for_the_revocation_that_it_may_have_to_sign() -> None:
    active = replace(walk(*OUTCOMES[:7]), condemned=Condemned(NOW, 1, by_certificate_key=True))
    retired = advance(active, Superseded(NOW), NOW)
    assert next_action(retired, NOW + 1) == Wait()
    assert not may_be_recalled(retired, NOW - 1)
    revoked = replace(retired, revocation=Revocation(NOW, 1))
    assert next_action(revoked, NOW + 1) == DestroyKey()
