"""The lifecycle bench itself: a small run of every part of it. No times."""

import io
from pathlib import Path

from rich.console import Console

from tests.bench.lifecycle import Enrollments, Idle, enrollments, idle, results, show

ENROLLED = Enrollments(profiles=2, per_s=7.123, keeper_ms=100.0, lab_ms=20.0)
IDLE = Idle(10_000, start_s=2.0, first_ms=900.0, tick_ms=150.0, rss_mib=101.26, asked_mib=140.0)


def test_profiles_are_enrolled_and_counted(tmp_path: Path) -> None:
    one = enrollments(tmp_path / "one", 1, again=2)
    two = enrollments(tmp_path / "two", 2)
    for made, number in ((one, 1), (two, 2)):
        assert made.profiles == number
        assert min(made.per_s, made.keeper_ms, made.lab_ms) > 0


def test_a_keeper_of_idle_profiles_ticks_and_has_memory(tmp_path: Path) -> None:
    nothing = idle(tmp_path / "idle", 20, ticks_wanted=3)
    assert nothing.profiles == 20
    assert min(nothing.first_ms, nothing.tick_ms) > 0
    assert nothing.rss_mib > 1


def test_the_file_has_a_figure_for_each_crowd_and_two_for_idle_profiles() -> None:
    crowds = [Enrollments(number, 1.0, 1.0, 1.0) for number in (1, 100, 1000)]
    assert list(results(crowds, IDLE)) == [
        "enroll_per_s_1",
        "enroll_per_s_100",
        "enroll_per_s_1000",
        "tick_10000_idle_ms",
        "keeper_rss_10000_mib",
    ]
    assert results([ENROLLED], IDLE) == {
        "enroll_per_s_2": 7.12,
        "tick_10000_idle_ms": 150.0,
        "keeper_rss_10000_mib": 101.3,
    }


def test_the_table_shows_targets_beside_what_was_measured() -> None:
    said = io.StringIO()
    show([ENROLLED], IDLE, Console(file=said, width=200))
    lines = said.getvalue().splitlines()
    assert any("enroll_per_s_2" in line and "7.1" in line for line in lines)
    assert any("150.0 ms" in line and "<= 100 ms" in line for line in lines)
    assert any("101.3 MiB" in line and "<= 150 MiB" in line for line in lines)
