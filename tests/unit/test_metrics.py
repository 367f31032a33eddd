"""Metrics of a signer: read back by Prometheus' own parser, and documented as they are.

After a change of a metric: `GOLDEN=write pytest tests/unit/test_metrics.py`.
"""

import math
import os
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kmsd.counters import BOUNDS, KINDS, Counters, Totals
from kmsd.metrics import State, families, rendered

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kmsd" / "metrics.md"
HEADER = """\
# Metrics

What each signer writes every five seconds to `metrics/signer-N.prom` in the run folder, in
Prometheus' text format, for node_exporter's textfile collector. Every series has the label
`signer`, the signer's number. Counters begin anew with the process. Written by
`GOLDEN=write pytest tests/unit/test_metrics.py`.

| Metric | Type | Labels | Meaning |
|---|---|---|---|
"""
STATE = State(
    serving=True,
    started_at=1_800_000_000,
    epoch=7,
    cpu_seconds=1.25,
    profiles=3,
    unusable=1,
    waiting=64,
    hsm_seconds=0.00004,
)
NUMBERS = st.integers(0, 2**53)
TOTALS = st.builds(
    Totals,
    signed=st.fixed_dictionaries(dict.fromkeys(KINDS, NUMBERS)),
    by_profile=st.dictionaries(st.text(), NUMBERS, max_size=4),
    refused=st.dictionaries(st.from_regex(r"[A-Z_]{1,30}", fullmatch=True), NUMBERS, max_size=4),
    calls=NUMBERS,
    frames=NUMBERS,
    streams=NUMBERS,
    took=st.lists(NUMBERS, min_size=len(BOUNDS) + 1, max_size=len(BOUNDS) + 1).map(
        lambda numbers: tuple(sorted(numbers))
    ),
    seconds=st.floats(0, 1e9),
)


def series(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every series with its value; each is there once."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            place = sample.name, frozenset(sample.labels.items())
            assert place not in found
            found[place] = sample.value
    return found


def some() -> Totals:
    """Of a signer that has signed, refused and answered."""
    counters = Counters(["acme"], 0)
    counters.refused("OVERLOADED", 64)
    counters.answered("acme", [("shaken", "A")], 1, 0.001)
    return counters.totals()


class Read:
    """A signer's text, as Prometheus reads it."""

    def __init__(self, text: bytes, signer: str) -> None:
        self._series = series(text)
        self._signer = signer

    def value(self, name: str, **labels: str) -> float:
        labels["signer"] = self._signer
        return self._series[f"kmsd_signer_{name}", frozenset(labels.items())]


@given(TOTALS)
def test_what_was_counted_is_what_prometheus_reads(totals: Totals) -> None:
    read = Read(rendered(2, STATE, totals), "2")
    for (ppt, attest), count in totals.signed.items():
        assert read.value("signatures_total", type=ppt, attest=attest) == count
    for profile, count in totals.by_profile.items():
        assert read.value("profile_signatures_total", profile=profile) == count
    for reason, count in totals.refused.items():
        assert read.value("refused_total", reason=reason) == count
    assert read.value("requests_total", method="Sign") == totals.calls
    assert read.value("requests_total", method="SignStream") == totals.frames
    for bound, count in zip((*BOUNDS, math.inf), totals.took, strict=True):
        le = "+Inf" if bound == math.inf else str(bound)
        assert read.value("answer_seconds_bucket", le=le) == count
    assert read.value("answer_seconds_count") == totals.took[-1]
    assert read.value("answer_seconds_sum") == totals.seconds
    assert read.value("streams") == totals.streams


def test_the_state_is_what_prometheus_reads() -> None:
    read = Read(rendered(1, STATE, some()), "1")
    values = {
        "serving": 1,
        "start_time_seconds": 1_800_000_000,
        "epoch": 7,
        "profiles": 3,
        "profiles_unusable": 1,
        "waiting": 64,
        "hsm_seconds": 0.00004,
        "cpu_seconds_total": 1.25,
    }
    assert {name: read.value(name) for name in values} == values


def test_the_files_of_two_signers_can_be_read_together() -> None:
    """node_exporter refuses a series that two files have, and two meanings of one name."""
    first, second = (rendered(signer, STATE, some()) for signer in (1, 2))
    assert not series(first).keys() & series(second).keys()
    comments = [
        [line for line in text.decode().splitlines() if line[0] == "#"] for text in (first, second)
    ]
    assert comments[0] == comments[1]


def test_ten_thousand_profiles_are_no_ten_thousand_series() -> None:
    counters = Counters([f"p{n}" for n in range(10_000)], 0)
    counters.answered("p7", [("shaken", "A")], 1, 0.001)
    assert len(series(rendered(1, STATE, counters.totals()))) < 60


def test_the_table_of_metrics_is_that_of_the_signer() -> None:
    made = HEADER + "".join(map(row, families(1, STATE, some())))
    if os.environ.get("GOLDEN") == "write":
        TABLE.write_text(made, "utf-8")
    assert TABLE.read_text("utf-8") == made


def test_the_readme_names_metrics_that_are_there() -> None:
    text = rendered(1, STATE, some()).decode()
    there = set(re.findall(r"^(kmsd_signer_\w+)", text, flags=re.M))
    named = re.findall(r"kmsd_signer_\w+", (ROOT / "README.md").read_text("utf-8"))
    assert named
    assert set(named) <= there


def row(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = {label for sample in family.samples for label in sample.labels} - {"signer", "le"}
    listed = ", ".join(f"`{label}`" for label in sorted(labels))
    return f"| `{name}` | {family.type} | {listed} | {family.documentation} |\n"
