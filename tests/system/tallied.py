"""The program `kmsd`, which writes down on SIGUSR1 what it holds: asyncio tasks, and
objects of its own classes (frames, above all).

`python -m tests.system.tallied FILE WORDS...` is `kmsd WORDS...` in every other respect. What the
system counts (descriptors, threads, memory) is read from /proc (proc(5)).
"""

import asyncio
import gc
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kmsd.cli import main as kmsd
from tests.system.programs import until


@dataclass(frozen=True)
class Tally:
    """What a process holds. memory: KiB, resident."""

    descriptors: int
    threads: int
    memory: int
    tasks: int
    objects: int


def tally(pid: int, file: Path) -> Tally:
    """Asks a process that was started with `file`."""
    file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    until("the process answers", file.exists)
    told = json.loads(file.read_text())
    return Tally(
        descriptors=descriptors(pid),
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
        memory=status_kib(pid, "VmRSS"),
        tasks=told["tasks"],
        objects=told["objects"],
    )


def descriptors(pid: int) -> int:
    """How many are open, which costs the process none."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def status_kib(pid: int, name: str) -> int:
    """A line of /proc/PID/status that is in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(name)


def main(file: Path) -> None:
    """kmsd, with the words that are left in sys.argv."""

    def write(_: int, __: FrameType | None) -> None:
        # Runs in the main thread, inside its event loop: that wakes up for any signal.
        gc.collect()
        held = {
            "tasks": len(asyncio.all_tasks()),
            "objects": sum(
                str(type(one).__module__).startswith("kmsd.") for one in gc.get_objects()
            ),
        }
        new = file.with_suffix(".new")
        new.write_text(json.dumps(held))
        new.replace(file)

    signal.signal(signal.SIGUSR1, write)
    kmsd()


if __name__ == "__main__":
    main(Path(sys.argv.pop(1)))
