"""When a client's own backlog is too long. No clock: time is what the test says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmsd_client.backlog import ALWAYS, BURST, CALM, LONGEST_WAIT, RECOVERY, Backlog
from kmsd_client.errors import Overloaded


def at_pace(per_s: float) -> Backlog:
    """A client that has been busy for a while, with so many answers a second, until now (0.0)."""
    backlog = Backlog()
    for frame in range(100, -1, -1):
        backlog.answered(64, -frame * 64 / per_s, more=True)
    return backlog


def test_a_backlog_that_stands_takes_no_more_than_is_answered_in_time() -> None:
    backlog = at_pace(10_000)
    for moment in (0.0, BURST / 2, BURST - 0.001):
        backlog.check(1000, moment)
    with pytest.raises(Overloaded) as refused:
        backlog.check(1000, BURST)
    assert refused.value.reason == "CLIENT_QUEUE_FULL"
    assert refused.value.retry_after == pytest.approx(0.1 + LONGEST_WAIT)
    backlog.check(int(LONGEST_WAIT * 10_000) - 1, BURST)
    with pytest.raises(Overloaded):  # it still stands: the next is refused at once
        backlog.check(int(LONGEST_WAIT * 10_000) + 1, BURST)


def test_a_burst_is_taken_whole_and_the_next_one_too() -> None:
    backlog = at_pace(10_000)
    for burst in range(5):
        for ahead in range(1000):
            backlog.check(ahead, burst * (CALM + 0.2) + ahead / 100_000)


def test_a_few_calls_are_never_too_many_however_slow_the_signers() -> None:
    backlog = at_pace(10)
    for moment in range(100):
        backlog.check(ALWAYS - 1, float(moment))


def test_calls_of_a_lost_signer_find_room() -> None:
    backlog = at_pace(10_000)
    for moment in range(20):
        backlog.check(5000, moment * BURST / 20)
    backlog.interrupted(BURST)
    for moment in range(20):
        backlog.check(5000, BURST + moment * RECOVERY / 20)
    with pytest.raises(Overloaded):
        backlog.check(5000, BURST + RECOVERY)


def test_pauses_in_which_nothing_waited_say_nothing_of_the_pace() -> None:
    backlog = at_pace(10_000)
    backlog.answered(1, 0.01, more=False)
    backlog.answered(1, 3600.0, more=True)
    backlog.answered(64, 3600.0064, more=True)
    for moment in (3601.0, 3602.0):
        backlog.check(200, moment)


def test_before_the_first_answer_nothing_is_too_many() -> None:
    backlog = Backlog()
    for moment in range(10):
        backlog.check(1_000_000, float(moment))


@given(
    st.lists(st.tuples(st.integers(0, 256), st.floats(0, 10), st.booleans())), st.integers(0, 10**6)
)
def test_whatever_was_answered_a_refusal_says_when_to_come_again(
    answers: list[tuple[int, float, bool]], ahead: int
) -> None:
    backlog, now = Backlog(), 0.0
    for items, pause, more in answers:
        now += pause
        backlog.answered(items, now, more=more)
    backlog.interrupted(now)
    backlog.check(ahead, now)
    told = _refusal(backlog, ahead, now + RECOVERY)
    assert told is None or (ahead >= ALWAYS and told.retry_after > LONGEST_WAIT)


def _refusal(backlog: Backlog, ahead: int, now: float) -> Overloaded | None:
    try:
        backlog.check(ahead, now)
    except Overloaded as refused:
        return refused
    return None
