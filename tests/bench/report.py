"""What people and programs read: the table, `sign.json` and the picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench.figures import FIGURES, RATIOS, Ratio, Row


class Report(msgspec.Struct, frozen=True):
    """One run. ratios and figures: None for what was not measured in it. choices: microseconds."""

    machine: dict[str, str | int | float]
    quick: bool
    seconds: float
    ratios: dict[str, float | None]
    figures: dict[str, float | None]
    rows: list[Row]
    choices: dict[str, float] = {}


def write(report: Report, path: Path) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def show(report: Report, console: Console) -> None:
    """Ratios with their targets first, then the rows, then what went wrong."""
    ratios = Table("ratio", "", "measured", "target", box=None, pad_edge=False)
    for ratio in RATIOS:
        ratios.add_row(*_line(ratio, report.ratios.get(ratio.name)))
    for figure in FIGURES:
        ratios.add_row(*_line(figure, report.figures.get(figure.name)))
    console.print(ratios)
    console.print()
    rows = Table(box=None, pad_edge=False)
    rows.add_column("row")
    for name in (
        "frame",
        "per s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "signer µs",
        "client µs",
        "signer MiB",
        "client MiB",
        "refused/s",
        "failed",
    ):
        rows.add_column(name, justify="right")
    for row in report.rows:
        rows.add_row(*_cells(row))
    console.print(rows)
    console.print()
    what = Table("choices on the hot path", "µs a PASSporT", box=None, pad_edge=False)
    for name, microseconds in report.choices.items():
        what.add_row(name, f"{microseconds:.2f}")
    console.print(what)
    for row in report.rows:
        if row.failed:
            console.print(f"{row.name}: {row.failed} failed: {row.why}", style="red")


def draw(rows: Sequence[Row], path: Path) -> bool:
    """Latency against offered load, as a PNG. False when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    loads = [row for row in rows if row.name.startswith("load_")]
    shares = [int(row.name.removeprefix("load_")) for row in loads]
    figure: Any = Figure(figsize=(8, 5), layout="constrained")
    latency, calls = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for name, label in (("p50_ms", "p50"), ("p99_ms", "p99"), ("p999_ms", "p99.9")):
        latency.plot(shares, [getattr(row, name) for row in loads], "o-", label=label)
    latency.set(yscale="log", ylabel="latency, ms", title="kmsd: single calls, kmsd_client")
    calls.plot(shares, [row.per_s for row in loads], "o-", label="signed")
    calls.plot(shares, [row.refused_per_s for row in loads], "o-", label="refused")
    calls.set(ylabel="calls / s", xlabel="offered load, % of capacity")
    for part in (latency, calls):
        part.grid(visible=True, alpha=0.3)
        part.legend()
    figure.savefig(path, dpi=120)
    return True


def _line(ratio: Ratio, value: float | None) -> Iterator[str]:
    yield ratio.name
    yield ratio.what
    if value is None:
        yield "[dim]-"
    else:
        style = "green" if ratio.met(value) else "red"
        yield f"[{style}]{value:.2f} {ratio.unit}".rstrip()
    yield f"{'<=' if ratio.at_most else '>='} {ratio.target:g} {ratio.unit}".rstrip()


def _cells(row: Row) -> Iterator[str]:
    yield row.name
    yield str(row.frame)
    yield f"{row.per_s:,.0f}"
    for latency in (row.p50_ms, row.p99_ms, row.p999_ms):
        yield "-" if latency is None else f"{latency:.2f}"
    for value in (row.signer_cpu_us, row.client_cpu_us, row.rss_mib, row.client_rss_mib):
        yield f"{value:.1f}" if value else "-"
    yield f"{row.refused_per_s:,.0f}" if row.refused_per_s else "-"
    yield str(row.failed or "-")
