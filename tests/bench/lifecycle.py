"""`python -m tests.bench.lifecycle`: how fast credentials are made, and what idle ones cost.

Real processes: a keeper, a signer that acknowledges each switch, and a lab without delays as
STI-PA, STI-CA and STI-CR, all on this machine. Writes bench/lifecycle.json.
"""

import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final, cast

import msgspec
import sqlalchemy as sa
from kmsapi.v1 import admin_pb2 as pb
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from kmsd.ctl import connection
from kmsd.hsm import new_key_id
from kmsd.lab import Lab, TlsAuthority
from kmsd.lab.server import Facts
from kmsd.store import Store, rows, tables
from tests.bench.crew import ROOT
from tests.bench.figures import Ratio
from tests.bench.proc import cpu_seconds
from tests.bench.ticked import ticks
from tests.system.key_room import KeyRoom
from tests.system.programs import program, until
from tests.system.tallied import status_kib

FILE: Final = ROOT / "bench" / "lifecycle.json"
CROWDS: Final = (1, 100, 1000)
IDLE: Final = 10_000
AGAIN: Final = 8
"""Enrollments, one after the other, where there is one profile."""
CALLERS: Final = 8
"""Who ask for enrollments at the same time."""
FIGURES: Final = (
    Ratio("tick_10000_idle_ms", "a keeper's tick, 10 000 idle profiles", 100.0, True, "ms"),
    Ratio("keeper_rss_10000_mib", "keeper memory, 10 000 profiles", 150.0, True, "MiB"),
)


@dataclass(frozen=True)
class Enrollments:
    """profiles: how many. per_s: enrollments a second. keeper_ms, lab_ms: CPU time for each."""

    profiles: int
    per_s: float
    keeper_ms: float
    lab_ms: float


@dataclass(frozen=True)
class Idle:
    """A keeper of so many profiles with nothing to do. Milliseconds; MiB, resident.

    first_ms: the first tick, which makes every profile's plan. tick_ms: the median of the others.
    start_s: from its start to the end of that. asked_mib: after it told `kmsctl profiles` of all.
    """

    profiles: int
    start_s: float
    first_ms: float
    tick_ms: float
    rss_mib: float
    asked_mib: float


@dataclass(frozen=True)
class Outside:
    """A lab that is a program of its own, as far as a key room needs to know it."""

    facts: Facts
    tls: TlsAuthority
    pid: int


def main() -> None:
    """Measures everything, writes bench/lifecycle.json and shows a table."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kmsd-bench-") as name:
        crowds = [enrollments(Path(name) / str(number), number) for number in CROWDS]
        nothing = idle(Path(name) / "idle", IDLE)
    figures = results(crowds, nothing)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    console = Console(width=110, highlight=False)
    show(crowds, nothing, console)
    console.print(f"\n{time.monotonic() - begun:.0f} s. bench/lifecycle.json written.")


def results(crowds: Sequence[Enrollments], nothing: Idle) -> dict[str, float]:
    """What goes into the file."""
    return {f"enroll_per_s_{one.profiles}": round(one.per_s, 2) for one in crowds} | {
        f"tick_{nothing.profiles}_idle_ms": round(nothing.tick_ms, 2),
        f"keeper_rss_{nothing.profiles}_mib": round(nothing.rss_mib, 1),
    }


def show(crowds: Sequence[Enrollments], nothing: Idle, console: Console) -> None:
    """Figures with a target beside it, then what explains them."""
    measured = results(crowds, nothing)
    table = Table("figure", "", "measured", "target", box=None, pad_edge=False)
    for one in crowds:
        name = f"enroll_per_s_{one.profiles}"
        what = f"enrollments a second, {one.profiles} profiles"
        table.add_row(name, what, f"{measured[name]:.1f}", "")
    for figure, value in zip(FIGURES, (nothing.tick_ms, nothing.rss_mib), strict=True):
        style = "green" if figure.met(value) else "red"
        target = f"<= {figure.target:g} {figure.unit}"
        shown = f"[{style}]{value:.1f} {figure.unit}[/]"
        table.add_row(figure.name, figure.what, shown, target)
    console.print(table)
    console.print()
    for one in crowds:
        console.print(
            f"{one.profiles} profiles: an enrollment takes {one.keeper_ms:.0f} ms of the keeper's "
            f"CPU time, {one.lab_ms:.0f} ms of the lab's"
        )
    console.print(
        f"{nothing.profiles} idle profiles: {nothing.start_s:.1f} s from its start to the end of "
        f"the first tick, which takes {nothing.first_ms:.0f} ms; {nothing.asked_mib:.0f} MiB "
        "after `kmsctl profiles`"
    )


def enrollments(folder: Path, profiles: int, again: int = AGAIN) -> Enrollments:
    """So many profiles get their first credential, all at once; a single one gets `again`."""
    names = [f"p{number}" for number in range(profiles)]
    with _lab(folder) as lab:
        room = KeyRoom(
            folder / "room", cast(Lab, lab), profiles={name: {"spc": "1234"} for name in names}
        )
        with room.running() as keeper:
            wanted = max(profiles, again if profiles == 1 else 0)
            pids = {"keeper": [keeper.pid], "lab": [lab.pid]}
            before = {name: cpu_seconds(them) for name, them in pids.items()}
            begun = time.monotonic()
            _enroll(room, names, wanted)
            taken = time.monotonic() - begun
            spent = {name: cpu_seconds(them) - before[name] for name, them in pids.items()}
    each = 1000 / wanted
    return Enrollments(profiles, wanted / taken, spent["keeper"] * each, spent["lab"] * each)


def idle(folder: Path, profiles: int, ticks_wanted: int = 30) -> Idle:
    """A keeper of so many profiles, each with an active credential that is not due."""
    names = [f"p{number}" for number in range(profiles)]
    with _lab(folder) as lab:
        room = KeyRoom(folder / "room", cast(Lab, lab), profiles={names[0]: {"spc": "1234"}})
        with room.running():
            room.enrolled(names[0])
        _multiply(room, names)
        room.profiles = {name: {"spc": "1234"} for name in names}
        room.configure()
        file, begun = folder / "ticks", time.monotonic()
        words = ("tests.bench.ticked", str(file), "--config", str(room.config), "keeper")
        with program(folder / "keeper.log", *words) as keeper:
            until("it ticks or ends", lambda: ticks(file) or keeper.poll() is not None, 120)
            if keeper.poll() is not None:
                raise RuntimeError((folder / "keeper.log").read_text())
            start = time.monotonic() - begun
            until("it has ticked", lambda: len(ticks(file)) > ticks_wanted, 120)
            rss, taken = status_kib(keeper.pid, "VmRSS") / 1024, ticks(file)
            assert room.kmsctl("profiles").code == 0
            asked = status_kib(keeper.pid, "VmRSS") / 1024
    return Idle(profiles, start, taken[0], median(taken[1:]), rss, asked)


@contextmanager
def _lab(folder: Path) -> Iterator[Outside]:
    """A lab that is not hostile and answers at once."""
    folder.mkdir()
    told = folder / "lab.json"
    words = ("kmsd.lab", "--folder", str(folder), "--calm", "--spc", "1234")
    with program(folder / "lab.log", *words) as process:
        until("the lab is there", told.exists)
        facts = msgspec.json.decode(told.read_bytes(), type=Facts)
        tls = TlsAuthority(folder / "tls", datetime.now(UTC))
        yield Outside(facts, tls, process.pid)


def _enroll(room: KeyRoom, names: Sequence[str], wanted: int) -> None:
    """Asks for first credentials, of a single profile for one after the other; back when
    `wanted` have become active."""
    with connection.admin(f"unix:{room.run}/keeper.sock") as admin:

        def begin(name: str) -> None:
            call = admin.Enroll(pb.EnrollRequest(profile=name), timeout=60)
            next(call)
            call.cancel()

        if len(names) > 1:
            with ThreadPoolExecutor(CALLERS) as callers:
                list(callers.map(begin, names))
        else:
            begin(names[0])
            for done in range(1, wanted):
                _until_active(room, done)
                call = admin.Rotate(pb.RotateRequest(profile=names[0]), timeout=60)
                next(call)
                call.cancel()
        _until_active(room, wanted)


def _until_active(room: KeyRoom, number: int) -> None:
    """Waits until so many credentials have been active; asks the file, not the keeper."""
    query = "SELECT count(*) FROM credentials WHERE state IN ('active', 'retired')"
    with closing(sqlite3.connect(f"file:{room.state}/kmsd.db?mode=ro", uri=True)) as store:
        until(
            f"{number} credentials are active",
            lambda: store.execute(query).fetchone()[0] >= number,
            600,
        )


def _multiply(room: KeyRoom, names: Sequence[str]) -> None:
    """Gives every profile an active credential like that of the first."""
    url = f"sqlite:///{room.state}/kmsd.db"
    with Store.look(url) as store:
        (one,) = store.credentials()
    others = [
        replace(one, id=f"{number:016x}", profile=name, key_id=new_key_id())
        for number, name in enumerate(names[1:], 1)
    ]
    engine = sa.create_engine(url)  # in one transaction, which the store has no need of
    with engine.begin() as database:
        database.execute(sa.insert(tables.credentials), [rows.columns(other) for other in others])
    engine.dispose()


if __name__ == "__main__":
    main()
