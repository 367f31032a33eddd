"""`python -m tests.bench`: all measurements, or with QUICK set those without the sweeps.

Writes bench/sign.json and, from the load sweep, bench/latency.png.
"""

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console

from tests.bench.choices import choices
from tests.bench.crew import ROOT
from tests.bench.figures import RATIOS, Row, ratio
from tests.bench.measures import (
    SLOW_CALL,
    SLOW_SESSIONS,
    Measurement,
    Pace,
    alternate,
    callers,
    hsm_ceiling,
    slow_hsm,
    software_signer,
    streams,
    unary,
    unary_echo,
)
from tests.bench.proc import machine
from tests.bench.report import Report, draw, show, write
from tests.bench.stage import host, signers
from tests.bench.sweeps import CROWDS, LOADS, Crowd, crowds, offered

FOLDER: Final = ROOT / "bench"
FRAMES: Final = (1, 8, 32, 64, 128)
CALLERS: Final = (1, 100, 1000)
QUICK: Final = Pace(rounds=5, seconds=0.24, warm=0.1)
FULL: Final = Pace(rounds=5, seconds=1.0, warm=0.3)


def main(quick: bool) -> Report:
    """Measures; shows and writes nothing."""
    return measure(quick=quick, pace=QUICK if quick else FULL)


def measure(
    *,
    quick: bool,
    pace: Pace,
    wanted: tuple[Crowd, ...] = CROWDS,
    loads: tuple[int, ...] = LOADS,
) -> Report:
    """One run. wanted, loads: of the sweeps."""
    begun = time.monotonic()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="kmsd-bench-") as name:
        folder = Path(name)
        rows, ratios, figures = _signing(folder, pace)
        if not quick:
            for sweep in (_crowds(folder, wanted, pace), _loads(folder, loads, pace)):
                rows += sweep[0]
                ratios |= sweep[1]
                figures |= sweep[2]
    everything: dict[str, float | None] = {one.name: ratios.get(one.name) for one in RATIOS}
    seconds = time.monotonic() - begun
    return Report(about, quick, seconds, everything, figures, rows, choices())


Part = tuple[list[Row], dict[str, float | None], dict[str, float | None]]


def _signing(folder: Path, pace: Pace) -> Part:
    """Everything but the sweeps, all of it up at once and measured in turn."""
    with ExitStack() as stack:
        at = host(folder / "plain")
        plain = signers(stack, at)
        secure = signers(stack, host(folder / "tls", tls=True))
        raw = plain.balanced(plain.crew(stack, "streams"))
        raw_tls = secure.balanced(secure.crew(stack, "streams"))
        client = plain.crew(stack, "calls")
        made = [
            hsm_ceiling(stack, at),
            streams(raw, plain, 64),
            streams(raw_tls, secure, 64, "stream_tls"),
            software_signer(stack, folder),
            callers(client, plain, 1000),
            unary(stack, plain),
            unary_echo(stack, folder),
            *(streams(raw, plain, frame) for frame in FRAMES if frame != 64),
            *(callers(client, plain, number) for number in CALLERS if number != 1000),
            slow_hsm(stack, folder),
        ]
        all_made = [one for one in made if one is not None]
        alternate(all_made, pace)
        rows = [one.row() for one in all_made]
    by = {(one.name, one.frame): one for one in all_made}
    return rows, _ratios(by), {"slow_hsm_vs_sessions": rows[-1].per_s / (SLOW_SESSIONS / SLOW_CALL)}


def _ratios(by: dict[tuple[str, int], Measurement]) -> dict[str, float | None]:
    stream, ceiling = by["stream", 64], by["hsm_ceiling", 1]
    found = {
        "stream64_vs_ceiling": ratio(stream.per_s(), ceiling.per_s()),
        "signer_cpu64_vs_hsm": ratio(
            [one.signer_cpu_us for one in stream.rounds],
            [one.signer_cpu_us for one in ceiling.rounds],
        ),
        "client1000_vs_ceiling": ratio(by["client_1000", 1].per_s(), ceiling.per_s()),
        "unary_vs_echo": ratio(by["unary", 1].per_s(), by["unary_echo", 1].per_s()),
        "tls_vs_plain": ratio(by["stream_tls", 64].per_s(), stream.per_s()),
    }
    if ("secsipidx", 1) in by:
        found["stream64_vs_secsipidx"] = ratio(stream.per_s(), by["secsipidx", 1].per_s())
    return found


def _crowds(folder: Path, wanted: tuple[Crowd, ...], pace: Pace) -> Part:
    with ExitStack() as stack:
        measured, starts = crowds(stack, folder, wanted, pace)
        rows = [one.row() for one in measured]
    least, most = wanted[0], wanted[-1]
    figures: dict[str, float | None] = {
        "profiles_memory": rows[-1].rss_mib - rows[0].rss_mib,
        "start_1": starts[least.name],
        "start_10000": starts[most.name],
    }
    return rows, {"profiles10000_vs_1": ratio(measured[-1].per_s(), measured[0].per_s())}, figures


def _loads(folder: Path, loads: tuple[int, ...], pace: Pace) -> Part:
    with ExitStack() as stack:
        server = signers(stack, host(folder / "load"))
        capacity, shares = offered(stack, server, loads, pace)
        rows = [one.row() for one in (capacity, *shares)]
    by = {row.name: row for row in rows}
    half, over = by.get("load_50"), by.get("load_150")
    figures: dict[str, float | None] = {}
    if half and half.p50_ms and half.p99_ms:
        figures["half_load_p99"] = half.p99_ms
        figures["half_load_p99_vs_p50"] = half.p99_ms / half.p50_ms
    if over:
        figures["overload_p99"] = over.p99_ms
        figures["overload_refusal_p99"] = over.refusal_p99_ms
    return rows, {"overload_goodput": ratio(shares[-1].per_s(), capacity.per_s())}, figures


if __name__ == "__main__":
    report = main(os.environ.get("QUICK", "") not in ("", "0"))
    write(report, FOLDER / "sign.json")
    console = Console(width=130, highlight=False)
    show(report, console)
    console.print(f"\n{report.seconds:.0f} s. bench/sign.json written", end="")
    if not report.quick and draw(report.rows, FOLDER / "latency.png"):
        console.print(", and bench/latency.png", end="")
    console.print(".")
