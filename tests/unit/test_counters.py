"""A signer's counters: sums that agree with what happened, and traces that come one in so many."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.counters import BOUNDS, KINDS, MOST_NAMED, Counters, Kind, stages
from kmsd.model import Value

PROFILES = ("acme", "zenith")
SHAKEN_A = ("shaken", "A")


class Answer(Value, frozen=True):
    profile: str
    kinds: list[Kind]
    epoch: int
    seconds: float


answers = st.lists(
    st.builds(
        Answer,
        profile=st.sampled_from((*PROFILES, "not configured any more")),
        kinds=st.lists(st.sampled_from(KINDS), max_size=5),
        epoch=st.integers(0, 3),
        seconds=st.sampled_from(BOUNDS) | st.floats(0, 10),
    ),
    max_size=40,
)


def counters(trace_every: int = 0) -> Counters:
    return Counters(PROFILES, trace_every)


@given(answers)
def test_the_sums_are_those_of_what_was_answered(given: list[Answer]) -> None:
    counted = counters()
    for one in given:
        counted.answered(one.profile, one.kinds, one.epoch, one.seconds)
    totals = counted.totals()
    kinds = [kind for one in given for kind in one.kinds]
    assert totals.signed == {kind: kinds.count(kind) for kind in KINDS}
    assert totals.by_profile == {
        name: sum(len(one.kinds) for one in given if one.profile == name) for name in PROFILES
    }
    assert totals.took == (
        *(sum(one.seconds <= bound for one in given) for bound in BOUNDS),
        len(given),
    )
    assert totals.seconds == pytest.approx(sum(one.seconds for one in given))


@given(st.lists(st.tuples(st.sampled_from(["OVERLOADED", "TN_INVALID"]), st.integers(0, 256))))
def test_what_is_refused_is_counted_in_passports_and_at_least_once(
    given: list[tuple[str, int]],
) -> None:
    counted = counters()
    for reason, items in given:
        counted.refused(reason, items)
    expected: dict[str, int] = {}
    for reason, items in given:
        expected[reason] = expected.get(reason, 0) + max(items, 1)
    assert counted.totals().refused == expected


@given(answers, st.integers(1, 7))
def test_a_trace_comes_one_in_so_many_and_with_each_new_epoch(
    given: list[Answer], every: int
) -> None:
    counted = counters(every)
    traced = [counted.answered(one.profile, one.kinds, one.epoch, one.seconds) for one in given]
    newest = -1
    for one, was in zip(given, traced, strict=True):
        assert was or one.epoch <= newest
        newest = max(newest, one.epoch)
    places = [place for place, was in enumerate(traced) if was]
    assert all(end - start <= every for start, end in pairwise([*places, len(given)]))
    news = len({max(one.epoch for one in given[: n + 1]) for n in range(len(given))})
    assert len(places) <= news + len(given) // every


def test_under_one_epoch_the_first_and_then_every_nth_answer_is_traced() -> None:
    counted = counters(10)
    traced = [counted.answered("acme", [SHAKEN_A], 7, 0.001) for _ in range(35)]
    assert [place for place, was in enumerate(traced) if was] == [0, 10, 20, 30]


def test_a_frame_of_the_last_epoch_that_ends_late_is_no_news() -> None:
    counted = counters(100)
    assert [counted.answered("acme", [], epoch, 0.1) for epoch in (4, 5, 4, 5)] == [
        True,
        True,
        False,
        False,
    ]


@given(answers)
def test_nothing_is_traced_when_nobody_wants_it(given: list[Answer]) -> None:
    counted = counters(0)
    assert not any(
        counted.answered(one.profile, one.kinds, one.epoch, one.seconds) for one in given
    )


@pytest.mark.parametrize(("configured", "named"), [(MOST_NAMED, MOST_NAMED), (MOST_NAMED + 1, 0)])
def test_profiles_are_counted_one_by_one_or_not_at_all(configured: int, named: int) -> None:
    counted = Counters([f"p{n}" for n in range(configured)], 0)
    counted.answered("p3", [SHAKEN_A, SHAKEN_A], 1, 0.001)
    totals = counted.totals()
    assert len(totals.by_profile) == named
    assert totals.by_profile.get("p3", 2) == 2
    assert totals.signed[SHAKEN_A] == 2


def test_totals_are_those_of_their_moment() -> None:
    counted = counters()
    before = counted.totals()
    counted.answered("acme", [SHAKEN_A], 1, 0.001)
    counted.refused("OVERLOADED")
    counted.calls += 1
    assert before == counters().totals()


def test_stages_are_microseconds_from_moment_to_moment() -> None:
    assert list(stages(5.0, 5.000120, 5.002120, 5.0021304)) == [120, 2000, 10]
