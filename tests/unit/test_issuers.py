"""Which STI-CA is asked, and for how long one is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.errors import KmsdError, Misconfigured, PeerRefused, Precondition, Unavailable
from kmsd.failures import FailureClass
from kmsd.issuers import DAY, NO, PAUSES, Ask, Health, Later, after_failure, all_refuse, choose

NOW = 1_800_000_000
NAMES = ("first", "second", "third")
DOWN = Unavailable("ACME_UNREACHABLE", "It does not answer.")
SLOWER = Unavailable("ACME_RATE_LIMITED", "Not so fast.", retry_after=7200)
NO_WORD = Unavailable("ACME_RATE_LIMITED", "Not so fast.")
REFUSED = PeerRefused("ACME_UNSUPPORTED_IDENTIFIER", "Not here.", peer="sti-ca")
BAD_CHAIN = PeerRefused("CHAIN_NOT_ACCEPTED", "Another key.", peer="sti-ca")
NO_PROOF = PeerRefused("ACME_UNAUTHORIZED", "Not yours.", peer="sti-ca", resource="challenge")
GONE = PeerRefused("ACME_NOT_FOUND", "No such order.", peer="sti-ca", resource="order")
OURS = (
    PeerRefused("STI_PA_REFUSED", "No.", peer="sti-pa"),
    Unavailable("STI_PA_UNREACHABLE", "It does not answer."),
    Unavailable("STI_PA_RATE_LIMITED", "Not so fast."),
    Unavailable("HSM_LOST", "It is gone."),
    Misconfigured("PROFILE_REMOVED", "It is not there."),
    Precondition("STORE_CONFLICT", "Twice."),
)
THEIRS = (DOWN, SLOWER, NO_WORD, REFUSED, BAD_CHAIN, NO_PROOF, GONE)

healths = st.builds(
    Health,
    issuer=st.sampled_from((*NAMES, "another")),
    failures=st.integers(1, 40),
    klass=st.sampled_from(list(PAUSES)),
    until=st.integers(NOW - DAY, NOW + DAY),
    profile=st.sampled_from(("", "acme")),
)
some = st.lists(healths, max_size=8)
orders = st.permutations(NAMES).flatmap(lambda all_: st.integers(1, 3).map(lambda n: all_[:n]))


def failed(issuer: str, *errors: KmsdError, pause: int = 0, profile: str = "acme") -> Health:
    """Its health after these, each met when the one before was over, `pause` seconds later."""
    health, now = None, NOW
    for error in errors:
        health = after_failure([health] if health else [], issuer, profile, error, now)
        assert health is not None
        now = health.until + pause
    assert health is not None
    return health


def paused(*errors: KmsdError) -> int:
    """Seconds of back-off after the last of them."""
    before = failed("first", *errors[:-1]).until if errors[1:] else NOW
    return failed("first", *errors).until - before


def test_the_first_of_a_profile_is_asked_while_nothing_is_known() -> None:
    assert choose(NAMES, (), NOW) == Ask("first")


def test_the_next_one_is_asked_while_the_first_is_in_back_off_and_then_the_first_again() -> None:
    down = failed("first", DOWN)
    assert choose(NAMES, [down], NOW) == Ask("second", ("first",))
    assert choose(NAMES, [down], down.until - 1) == Ask("second", ("first",))
    assert choose(NAMES, [down], down.until) == Ask("first")


def test_when_all_are_in_back_off_the_first_that_may_be_asked_again_says_when() -> None:
    everywhere = [failed("first", REFUSED), failed("second", DOWN), failed("third", SLOWER)]
    assert choose(NAMES, everywhere, NOW) == Later(everywhere[1].until)


def test_one_to_avoid_is_not_asked_however_long_the_others_are_in_back_off() -> None:
    assert choose(NAMES, (), NOW, avoid=["first"]) == Ask("second")
    elsewhere = [failed("second", REFUSED), failed("third", REFUSED)]
    assert choose(NAMES, elsewhere, NOW, avoid=["first"]) == Later(min(h.until for h in elsewhere))


def test_one_to_avoid_is_asked_where_there_is_no_other() -> None:
    assert choose(("first",), (), NOW, avoid=["first"]) == Ask("first")


@given(orders, some, st.sets(st.sampled_from(NAMES)))
def test_who_is_asked_is_the_first_in_order_that_is_in_no_back_off(
    names: list[str], known: list[Health], avoid: set[str]
) -> None:
    def away(name: str) -> bool:
        return any(h.issuer == name and h.until > NOW for h in known)

    wanted = [name for name in names if name not in avoid] or names
    match choose(names, known, NOW, avoid):
        case Ask(name, instead_of):
            assert not away(name)
            assert [*instead_of, name] == wanted[: len(instead_of) + 1]
            assert all(map(away, instead_of))
        case Later(until):
            assert all(map(away, wanted))
            assert isinstance(choose(names, known, until, avoid), Ask)
            assert isinstance(choose(names, known, until - 1, avoid), Later)


@pytest.mark.parametrize("error", OURS, ids=lambda error: error.reason)
def test_what_is_not_an_issuers_doing_is_not_held_against_it(error: KmsdError) -> None:
    assert after_failure((), "first", "acme", error, NOW) is None


def test_one_that_does_not_answer_is_left_alone_by_every_profile() -> None:
    assert failed("first", DOWN).profile == ""


@pytest.mark.parametrize("error", THEIRS[1:], ids=lambda error: error.reason)
def test_what_it_says_to_one_profile_is_not_held_against_it_by_others(error: KmsdError) -> None:
    assert failed("first", error).profile == "acme"


@pytest.mark.parametrize("error", THEIRS, ids=lambda error: error.reason)
def test_a_back_off_that_a_clock_set_back_would_make_longer_is_none(error: KmsdError) -> None:
    tomorrow = failed("first", error, error)
    yesterday = tomorrow.at - DAY
    assert choose(["first"], [tomorrow], yesterday) == Ask("first")
    assert not all_refuse(["first"], [tomorrow], yesterday)
    again = after_failure([tomorrow], "first", "acme", error, yesterday)
    assert again is not None
    assert again.at == yesterday


def test_a_failure_that_many_met_at_once_is_one_failure() -> None:
    down = failed("first", DOWN)
    again = after_failure([down], "first", "other", DOWN, down.until - 1)
    assert again is down
    later = after_failure([down], "first", "other", DOWN, down.until)
    assert later is not None
    assert (later.failures, later.since) == (2, NOW)


def test_a_failure_of_another_kind_begins_to_count_anew() -> None:
    refused = failed("first", NO_WORD, NO_WORD, REFUSED)
    assert refused.failures == 1
    assert refused.since > NOW


def test_an_issuer_that_says_how_long_is_left_alone_so_long() -> None:
    assert paused(SLOWER) == 7200
    assert 45 <= paused(NO_WORD) <= 75
    soon = Unavailable("ACME_RATE_LIMITED", "Not so fast.", retry_after=0.5)
    assert paused(soon) == 1
    assert paused(*[soon] * 6) >= 24  # it did not help


@pytest.mark.parametrize("error", [GONE, NO_PROOF], ids=["order gone", "SPC token refused"])
def test_a_new_order_with_a_fresh_token_is_tried_at_once_and_once(error: KmsdError) -> None:
    assert paused(error) == 0
    assert paused(error, error) > 0


@given(st.sampled_from(THEIRS), st.integers(1, 12))
def test_the_back_off_grows_to_its_longest_and_no_further(error: KmsdError, times: int) -> None:
    klass = failed("first", error).klass
    pause = paused(*[error] * times)
    first, longest = PAUSES[klass]
    assert pause <= max(longest * 5 // 4, 7200)
    if times > 9:
        assert pause >= longest * 3 // 4
    elif times > 1:
        assert pause >= first * 3 // 4


@given(st.integers(0, 10**6))
def test_issuers_do_not_all_come_back_at_the_same_moment(second: int) -> None:
    now = NOW + second
    ended = [after_failure((), f"ca{n}", "acme", REFUSED, now) for n in range(40)]
    pauses = {health.until - now for health in ended if health}
    assert len(pauses) > 20
    assert all(2700 <= pause <= 4500 for pause in pauses)


def test_all_refuse_when_each_of_them_said_no_and_not_before() -> None:
    no = [failed("first", REFUSED), failed("second", BAD_CHAIN)]
    assert not all_refuse(NAMES, no, NOW)
    assert not all_refuse(NAMES, [*no, failed("third", DOWN)], NOW)
    assert not all_refuse(NAMES, [*no, failed("third", NO_PROOF)], NOW)
    insists = failed("third", NO_PROOF, NO_PROOF)
    assert all_refuse(NAMES, [*no, insists], insists.until - 1) is all_refuse(
        NAMES[:2], no, insists.until - 1
    )
    assert not all_refuse(NAMES[:2], no, max(h.until for h in no))


@given(orders, some)
def test_nothing_is_given_up_as_long_as_one_may_still_issue(
    names: list[str], known: list[Health]
) -> None:
    if isinstance(choose(names, known, NOW), Ask):
        assert not all_refuse(names, known, NOW)
    for health in known:
        assert health.refuses(NOW) == (health.until > NOW and health.klass in NO)


def test_every_class_that_is_an_issuers_doing_has_its_pauses() -> None:
    others = {FailureClass.OURS, *(k for k in FailureClass if k.startswith("authority_"))}
    assert set(PAUSES) == set(FailureClass) - others
