"""The bench itself: every measurement runs, and says what it is meant to say. No times."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.bench.__main__ import measure
from tests.bench.figures import FIGURES, RATIOS, Round, latency_class, quantile_ms, ratio, row_of
from tests.bench.measures import Pace
from tests.bench.proc import cpu_seconds, peak_mib
from tests.bench.report import Report, show, write
from tests.bench.sweeps import Crowd

TINY = Pace(rounds=1, seconds=0.05, warm=0.02)
ROW = {
    "name": str,
    "frame": int,
    "per_s": float,
    "p50_ms": float,
    "p99_ms": float,
    "p999_ms": float,
    "signer_cpu_us": float,
    "client_cpu_us": float,
    "rss_mib": float,
}


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})  # half the processes to start
        yield measure(quick=False, pace=TINY, wanted=(Crowd(1, 1), Crowd(5, 2)), loads=(50, 150))


def test_every_measurement_gives_a_row_and_no_call_fails_but_by_being_late(report: Report) -> None:
    assert {(row.name, row.frame) for row in report.rows} == {
        ("hsm_ceiling", 1),
        *(("stream", frame) for frame in (1, 8, 32, 64, 128)),
        ("stream_tls", 64),
        *((f"client_{callers}", 1) for callers in (1, 100, 1000)),
        ("unary", 1),
        ("unary_echo", 1),
        ("secsipidx", 1),
        ("slow_hsm", 16),
        ("profiles_1", 64),
        ("profiles_5", 64),
        ("capacity", 1),
        ("load_50", 1),
        ("load_150", 1),
    }
    why = [row.why for row in report.rows if row.failed]
    assert [one for one in why if "deadline" not in one.lower()] == []
    assert all(row.rss_mib > 1 for row in report.rows)
    assert len(report.choices) == 8
    assert all(microseconds > 0 for microseconds in report.choices.values())


def test_the_json_has_the_shape_that_others_read(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "bench" / "sign.json"
    write(report, file)
    read = msgspec.json.decode(file.read_bytes())
    assert read["machine"]["cores"] >= 1
    assert set(read["ratios"]) == {
        "stream64_vs_ceiling",
        "stream64_vs_secsipidx",
        "signer_cpu64_vs_hsm",
        "client1000_vs_ceiling",
        "unary_vs_echo",
        "profiles10000_vs_1",
        "tls_vs_plain",
        "overload_goodput",
    }
    assert set(read["figures"]) <= {figure.name for figure in FIGURES}
    for row in read["rows"]:
        for name, kind in ROW.items():
            assert isinstance(row[name], kind | None if name.startswith("p") else kind), name


def test_the_table_shows_every_target_beside_what_was_measured(report: Report) -> None:
    said = io.StringIO()
    show(report, Console(file=said, width=200))
    lines = said.getvalue().splitlines()
    for one in (*RATIOS, *FIGURES):
        [line] = [line for line in lines if line.startswith(f"{one.name} ")]
        assert f"{'<=' if one.at_most else '>='} {one.target:g}" in line
    assert lines[0].startswith("ratio")


def test_quantiles_are_within_two_per_cent() -> None:
    latencies = {latency_class(ms / 1000): 1 for ms in range(1, 101)}
    assert quantile_ms({}, 0.5) is None
    assert quantile_ms(latencies, 1.0) == pytest.approx(100, rel=0.02)
    assert quantile_ms({latency_class(0.003): 99, latency_class(1): 1}, 0.99) == pytest.approx(
        3, rel=0.02
    )


def test_a_row_is_the_median_of_its_rounds_and_a_ratio_that_of_their_ratios() -> None:
    rounds = [Round(per_s, 1.0, None, None, 50.0, 5.0) for per_s in (10.0, 1000.0, 30.0)]
    row = row_of("a", 1, rounds, 40.0, 20.0)
    assert row.per_s == 30.0
    assert row.p99_ms is None
    assert ratio([10.0, 1000.0, 30.0], [10.0, 100.0, 10.0]) == 3.0
    assert ratio([10.0], [0.0]) is None


def test_a_process_has_used_cpu_time_and_memory() -> None:
    me = [os.getpid()]
    assert cpu_seconds(me) > 0
    assert peak_mib(me) > 1
    assert peak_mib([]) == 0
