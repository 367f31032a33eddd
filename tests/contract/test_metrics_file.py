"""The file of a signer's metrics: whole at any time, readable by anybody, gone at the end."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.counters import Counters
from kmsd.metrics import MetricsFile, State

STATE = State(serving=True, started_at=1, epoch=1, cpu_seconds=0.5)
TOTALS = Counters(["acme"], 0).totals()


@pytest.fixture(autouse=True)
def strict_umask() -> Iterator[None]:
    """That of the units."""
    before = os.umask(0o007)
    yield
    os.umask(before)


def test_a_user_of_another_group_can_read_it(tmp_path: Path) -> None:
    MetricsFile(tmp_path, 3).write(STATE, TOTALS)
    (written,) = (tmp_path / "metrics").iterdir()
    assert written.name == "signer-3.prom"
    assert written.stat().st_mode & 0o777 == 0o644


def test_whoever_reads_while_it_is_replaced_has_the_old_one_whole(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path, 1)
    metrics.write(STATE, TOTALS)
    path = tmp_path / "metrics" / "signer-1.prom"
    before = path.read_bytes()
    with path.open("rb") as reading:
        metrics.write(State(serving=False, started_at=1, epoch=-1, cpu_seconds=0.6), TOTALS)
        assert reading.read() == before
    assert path.read_bytes() != before
    assert list(path.parent.iterdir()) == [path]


def test_what_a_signer_that_was_killed_left_half_written_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "signer-1.new").write_text("kmsd_sig")
    MetricsFile(tmp_path, 1).write(STATE, TOTALS)
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["signer-1.prom"]


def test_a_write_that_was_under_way_does_not_bring_it_back(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path, 1)
    metrics.remove()  # before the first write: nothing to remove
    metrics.write(STATE, TOTALS)
    assert list(tmp_path.rglob("*.prom")) == []


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("in the way")
    metrics = MetricsFile(tmp_path, 1)
    with pytest.raises(OSError, match="exists"):
        metrics.write(STATE, TOTALS)
    metrics.remove()
