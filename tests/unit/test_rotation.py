"""When a profile's credential is renewed, and why then."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kmsd.model import (
    Active,
    BirthRecord,
    Certificate,
    Condemned,
    Credential,
    Failed,
    New,
    Retired,
    Revocation,
)
from kmsd.rotation import (
    Expect,
    Hints,
    Keep,
    Renew,
    Step,
    active_of,
    floor_of,
    next_renewal,
    patience,
    plan,
    renewal_time,
    spread,
)
from kmsd.settings import Policy

HOUR, DAY, YEAR = 3_600, 86_400, 365 * 86_400
START = int(datetime(2027, 1, 4, tzinfo=UTC).timestamp())
"""A Monday, 00:00."""
BIRTH = BirthRecord("ab" * 16, "label", START, b"", {}, "m", "t", "s")
CERTIFICATE = Certificate("pem", "ca", "", "01", "cd" * 32, START, START + 100 * DAY)
POLICY = Policy(renew_at=0.5, jitter=0)
DUE, FLOOR, END = START + 50 * DAY, START + 90 * DAY, START + 100 * DAY


def active(lifetime: int = 100 * DAY, id: str = "a" * 16) -> Credential:
    certificate = replace(CERTIFICATE, not_after=START + lifetime)
    return Credential(
        id, "acme", "1234", "ab" * 16, START, Active(BIRTH, certificate, "https://x", START, 1)
    )


def failed(at: int, id: str = "b" * 16) -> Credential:
    return Credential(id, "acme", "1234", "cd" * 16, at, Failed("keyed", at, "REASON", "message"))


ACTIVE = active()


def moment(step: Step) -> int:
    assert isinstance(step, Keep)
    return step.until


def test_a_profile_that_was_never_enrolled_waits_for_a_person() -> None:
    assert plan(START, [], POLICY) == Keep(until=0, why="NOT_ENROLLED")
    assert plan(START, [failed(START)], POLICY) == Keep(until=0, why="NOT_ENROLLED")


def test_a_credential_is_renewed_at_its_fraction_of_the_lifetime() -> None:
    assert plan(DUE - 1, [ACTIVE], POLICY) == Keep(until=DUE, why="FRACTION")
    assert plan(DUE, [ACTIVE], POLICY) == Renew(why="FRACTION")


def test_one_on_its_way_is_waited_for() -> None:
    coming = Credential("b" * 16, "acme", "1234", "cd" * 16, START, New())
    assert plan(START + 99 * DAY, [coming, ACTIVE], POLICY) == Expect("b" * 16)


def test_the_newest_of_two_that_are_active_counts() -> None:
    state = ACTIVE.state
    assert isinstance(state, Active)
    newer = replace(ACTIVE, id="c" * 16, state=replace(state, since=START + 1))
    assert active_of([newer, ACTIVE, failed(START)]) == newer


# The STI-CA's wish


def test_the_moment_that_the_sti_ca_suggests_goes_before_the_fraction() -> None:
    for suggested in (START + 10 * DAY, START + 70 * DAY):
        hints = Hints(renew_at={ACTIVE.id: suggested})
        assert plan(START, [ACTIVE], POLICY, hints) == Keep(until=suggested, why="ARI")
        assert plan(suggested, [ACTIVE], POLICY, hints) == Renew(why="ARI")


def test_no_suggestion_reaches_past_the_floor() -> None:
    hints = Hints(renew_at={ACTIVE.id: START + 95 * DAY})
    assert plan(START, [ACTIVE], POLICY, hints) == Keep(until=FLOOR, why="FLOOR")
    assert plan(FLOOR, [ACTIVE], POLICY, hints) == Renew(why="FLOOR", urgent=True)


def test_a_suggestion_for_another_credential_says_nothing() -> None:
    hints = Hints(renew_at={"f" * 16: START})
    assert plan(START, [ACTIVE], POLICY, hints) == Keep(until=DUE, why="FRACTION")


# Fraction and jitter


def test_many_profiles_renew_one_after_the_other_and_each_always_at_its_own_moment() -> None:
    policy = Policy(renew_at=0.5, jitter=0.1)
    ids = [f"{n:016x}" for n in range(1000)]
    moments = [renewal_time(active(id=id), policy)[0] for id in ids]
    assert moments == [renewal_time(active(id=id), policy)[0] for id in ids]
    assert min(moments) >= DUE
    assert max(moments) < DUE + 10 * DAY
    per_day = [sum((at - DUE) // DAY == day for at in moments) for day in range(10)]
    assert min(per_day) > 60
    assert max(per_day) < 140


@given(st.text(), st.integers(0, 2**40))
def test_what_is_spread_stays_inside(seed: str, width: int) -> None:
    assert 0 <= spread(seed, width) <= width


def test_a_fraction_that_is_past_the_floor_is_no_excuse() -> None:
    policy = Policy(renew_at=0.95, jitter=0)
    assert plan(START, [ACTIVE], policy) == Keep(until=FLOOR, why="FLOOR")


@pytest.mark.parametrize("lifetime", [HOUR, DAY, 7 * DAY, 90 * DAY, YEAR, 3 * YEAR])
def test_every_lifetime_leaves_a_third_of_itself_for_what_goes_wrong(lifetime: int) -> None:
    due, why = renewal_time(active(lifetime), Policy())
    assert why == "FRACTION"
    assert 0.66 * lifetime - 1 <= due - START < 0.71 * lifetime


# Failures


def test_after_a_failed_renewal_the_next_ones_come_later_and_later() -> None:
    at = START + 60 * DAY
    history, pauses = [ACTIVE], []
    for n in range(12):
        history.append(failed(at, f"{n:016x}"))
        step = plan(at, history, POLICY)
        assert step == Keep(until=moment(step), why="RETRY")
        assert plan(moment(step), history, POLICY) == Renew(why="RETRY")
        pauses.append(moment(step) - at)
        at = moment(step)
    assert pauses[:4] == [900, 1800, 3600, 7200]
    assert pauses[-1] == DAY


@pytest.mark.parametrize(
    ("lifetime", "first", "longest"),
    [(HOUR, 15, 75), (DAY, 360, 1800), (7 * DAY, 900, 3 * HOUR + 1800), (3 * YEAR, 900, DAY)],
)
def test_pauses_are_in_proportion_to_what_is_left(lifetime: int, first: int, longest: int) -> None:
    one, at = active(lifetime), START + lifetime // 2
    assert moment(plan(at, [one, failed(at)], POLICY)) - at == first
    many = [failed(at, f"{n:016x}") for n in range(50)]
    assert moment(plan(at, [one, *many], POLICY)) - at == longest


def test_no_pause_reaches_past_the_floor_and_below_it_they_are_short() -> None:
    many = [failed(FLOOR - 60, f"{n:016x}") for n in range(50)]
    assert plan(FLOOR - 60, [ACTIVE, *many], POLICY) == Keep(until=FLOOR, why="RETRY")
    assert plan(FLOOR, [ACTIVE, *many], POLICY) == Renew(why="RETRY", urgent=True)
    late = [failed(END - HOUR, f"{n:016x}") for n in range(50)]
    assert moment(plan(END - HOUR, [ACTIVE, *late], POLICY)) == END - HOUR + 900


def test_an_expired_credential_is_renewed_as_often_as_is_decent() -> None:
    expired = [failed(END + DAY, f"{n:016x}") for n in range(50)]
    assert moment(plan(END + DAY, [ACTIVE, *expired], POLICY)) == END + DAY + 900
    assert plan(END + DAY, [ACTIVE], POLICY) == Renew(why="FRACTION", urgent=True)


def test_failures_before_the_credential_was_active_are_not_its_own() -> None:
    assert plan(DUE, [ACTIVE, failed(START - 1)], POLICY) == Renew(why="FRACTION")


def test_a_failure_of_the_future_means_a_clock_that_was_set_back_and_holds_nothing_up() -> None:
    assert plan(DUE, [ACTIVE, failed(DUE + DAY)], POLICY) == Renew(why="FRACTION")


# What cannot wait


def test_a_revoked_credential_is_renewed_at_once() -> None:
    revoked = replace(ACTIVE, revocation=Revocation(START, 1))
    assert plan(START, [revoked], POLICY) == Renew(why="CONDEMNED", urgent=True)


def test_so_is_one_whose_revocation_waits_for_its_successor() -> None:
    asked = replace(ACTIVE, condemned=Condemned(START, 1))
    assert plan(START, [asked], POLICY) == Renew(why="CONDEMNED", urgent=True)


def test_a_condemned_credential_is_renewed_at_once_whatever_window_there_is() -> None:
    hints = Hints(condemned={ACTIVE.id: "ISSUER_NOT_TRUSTED"})
    policy = replace(POLICY, windows=("Sun 00:00-01:00",))
    assert plan(START, [ACTIVE], policy, hints) == Renew(why="CONDEMNED", urgent=True)


def test_a_condemned_credential_is_tried_again_within_the_hour() -> None:
    hints = Hints(condemned={ACTIVE.id: "CREDENTIAL_REVOKED"})
    policy = replace(POLICY, windows=("Sun 00:00-01:00",))
    many = [failed(START + DAY, f"{n:016x}") for n in range(50)]
    assert plan(START + DAY, [ACTIVE, *many], policy, hints) == Keep(
        until=START + DAY + HOUR, why="RETRY"
    )


# A person went back


def test_what_was_recalled_is_not_replaced_again_before_its_floor() -> None:
    state = ACTIVE.state
    assert isinstance(state, Active)
    back = replace(ACTIVE, state=replace(state, recalled=True))
    hints = Hints(renew_at={ACTIVE.id: START})
    assert plan(DUE, [back], POLICY, hints) == Keep(until=FLOOR, why="RECALLED")
    assert plan(FLOOR, [back], POLICY, hints) == Renew(why="RECALLED", urgent=True)


def test_a_rehearsal_neither_replaces_a_renewal_nor_holds_one_up() -> None:
    going = Credential("b" * 16, "acme", "1234", "cd" * 16, START, New(), rehearsal=True)
    lost = replace(failed(DUE), rehearsal=True)
    assert plan(DUE, [ACTIVE, going, lost], POLICY) == Renew(why="FRACTION")


def test_what_is_retired_needs_nothing() -> None:
    retired = replace(ACTIVE, state=Retired(BIRTH, CERTIFICATE, "https://x", START, START))
    assert plan(END, [retired], POLICY) == Keep(until=0, why="NOT_ENROLLED")


# Windows

WINDOWED = replace(POLICY, windows=("Mon-Fri 08:00-16:00",))
OPENS = START + 51 * DAY - 16 * HOUR  # DUE is a Tuesday, 00:00


def test_a_renewal_waits_for_a_maintenance_window_and_not_all_for_its_first_second() -> None:
    moments = [moment(plan(START, [active(id=f"{n:016x}")], WINDOWED)) - OPENS for n in range(100)]
    assert all(0 <= at < 8 * HOUR for at in moments)
    assert len({at // HOUR for at in moments}) == 8


def test_what_falls_into_a_window_waits_for_nothing() -> None:
    hints = Hints(renew_at={ACTIVE.id: OPENS + HOUR})
    assert plan(START, [ACTIVE], WINDOWED, hints) == Keep(until=OPENS + HOUR, why="ARI")


def test_a_window_that_nobody_was_there_for_makes_it_wait_for_the_next() -> None:
    evening = OPENS + 10 * HOUR
    step = plan(evening, [ACTIVE], WINDOWED)
    assert step == Keep(until=moment(step), why="WINDOW")
    assert OPENS + DAY <= moment(step) < OPENS + DAY + 8 * HOUR
    assert plan(OPENS + DAY, [ACTIVE], WINDOWED) == Renew(why="WINDOW")


def test_where_the_next_window_is_past_the_floor_it_is_the_one_before() -> None:
    hints = Hints(renew_at={ACTIVE.id: FLOOR - 1})  # 00:00 on a Sunday, but for a second
    friday = FLOOR - 40 * HOUR
    step = plan(START, [ACTIVE], WINDOWED, hints)
    assert step == Keep(until=moment(step), why="WINDOW")
    assert friday <= moment(step) < friday + 8 * HOUR
    assert plan(moment(step), [ACTIVE], WINDOWED, hints) == Renew(why="WINDOW")


def test_where_that_was_missed_too_it_waits_for_no_window() -> None:
    hints = Hints(renew_at={ACTIVE.id: FLOOR - 1})
    saturday = FLOOR - 12 * HOUR
    assert plan(saturday, [ACTIVE], WINDOWED, hints) == Keep(until=FLOOR - 1, why="ARI")
    assert plan(FLOOR - 1, [ACTIVE], WINDOWED, hints) == Renew(why="ARI")
    assert plan(FLOOR, [ACTIVE], WINDOWED, hints) == Renew(why="ARI", urgent=True)


def test_an_hours_lifetime_waits_neither_for_last_week_nor_for_the_next() -> None:
    one = active(HOUR)
    weekly = replace(POLICY, windows=("Sun 00:00-01:00",))
    assert plan(START, [one], weekly) == Keep(until=START + 30 * 60, why="FRACTION")


def test_a_failure_is_tried_again_without_a_window_where_none_comes_before_the_floor() -> None:
    lost = failed(FLOOR - DAY)
    step = plan(FLOOR - DAY, [ACTIVE, lost], WINDOWED)
    assert step == Keep(until=FLOOR - DAY + 900, why="RETRY")


def test_patience_ends_with_what_is_left() -> None:
    assert patience(START, ACTIVE) == 100 * DAY // 24
    assert patience(END - DAY, ACTIVE) == HOUR
    assert patience(END + DAY, ACTIVE) == 900
    assert patience(START + HOUR, active(HOUR)) == 15


@given(
    lifetime=st.integers(HOUR, 3 * YEAR),
    after=st.integers(0, 4 * YEAR),
    failures=st.lists(st.integers(0, 3 * YEAR), max_size=20),
    suggested=st.none() | st.integers(-YEAR, 4 * YEAR),
    windows=st.sampled_from([(), ("Mon-Fri 08:00-16:00",), ("Sat 00:00-00:01", "Sun 23:00-01:00")]),
    recalled=st.booleans(),
)
def test_whatever_happens_a_renewal_is_begun_before_the_floor_or_as_soon_as_failures_allow(
    lifetime: int,
    after: int,
    failures: list[int],
    suggested: int | None,
    windows: tuple[str, ...],
    recalled: bool,
) -> None:
    one = active(lifetime)
    state = one.state
    assert isinstance(state, Active)
    one = replace(one, state=replace(state, recalled=recalled))
    policy = Policy(windows=windows)
    hints = Hints() if suggested is None else Hints(renew_at={one.id: START + suggested})
    now, floor = START + after, floor_of(one, policy)
    lost = [failed(START + at, f"{n:016x}") for n, at in enumerate(failures)]
    step = plan(now, [one, *lost], policy, hints)
    if isinstance(step, Keep):
        assert step.until > now
        if now < floor:
            assert step.until <= floor
        else:
            assert step.why == "RETRY"
            assert step.until <= now + max(900, (state.certificate.not_after - now) // 12)
        again = plan(step.until, [one, *lost], policy, hints)
        seen = [at for at in failures if now < START + at <= step.until]
        assert isinstance(again, Renew) or seen or plan(step.until, [one], policy) != again
    else:
        assert isinstance(step, Renew)
        assert step.urgent == (now >= floor)


def test_the_moment_of_a_renewal_can_be_asked_for_alone() -> None:
    assert next_renewal(START, ACTIVE, (), POLICY) == (DUE, "FRACTION")
    assert renewal_time(ACTIVE, WINDOWED) == (DUE, "FRACTION")
