"""The program `kmsd`, which writes down how long each tick of its keeper takes.

`python -m tests.bench.ticked FILE WORDS...` is `kmsd WORDS...` in every other respect. FILE gets a
line a tick: milliseconds.
"""

import sys
import time
from pathlib import Path

from kmsd.cli import main as kmsd
from kmsd.keeper import Keeper


def ticks(file: Path) -> list[float]:
    """What a process that was started with `file` has written so far, without the last line."""
    return [float(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def main(file: Path) -> None:
    """kmsd, with the words that are left in sys.argv."""
    tick = Keeper._tick

    async def timed(self: Keeper) -> None:
        begun = time.perf_counter()
        await tick(self)
        taken = (time.perf_counter() - begun) * 1000
        with file.open("a") as out:
            out.write(f"{taken:.3f}\n")

    Keeper._tick = timed  # type: ignore[method-assign]
    kmsd()


if __name__ == "__main__":
    main(Path(sys.argv.pop(1)))
