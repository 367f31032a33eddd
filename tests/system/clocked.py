"""The program `kmsd` on a clock that a test can move.

`python -m tests.system.clocked FILE WORDS...` is `kmsd WORDS...` in every other respect.

FILE says by how many seconds the host is ahead of the clock of this machine. kmsd asks for the
time of day by `time.time()` alone, and that is what is replaced; what OpenSSL asks the kernel for
(is the certificate of an HTTPS server valid?) and the clock that never jumps (CLOCK_MONOTONIC,
which timeouts and pauses go by) are as they are.
"""

import sys
import time
from pathlib import Path

from kmsd.cli import main as kmsd


class Clock:
    """The clock of one host, and of the world around it. Begins as this machine's."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._world = self._ahead = 0.0
        self._write()

    @property
    def program(self) -> tuple[str, ...]:
        """The words that start kmsd on this clock."""
        return "tests.system.clocked", str(self._file)

    def world(self) -> float:
        """What everybody else's clock says: seconds since the epoch."""
        return time.time() + self._world

    def passes(self, seconds: float) -> None:
        """Time goes by, for the host and for everybody else."""
        self._world += seconds
        self._write()

    def jumps(self, seconds: float) -> None:
        """The host's clock alone is set to so much before or after everybody else's."""
        self._ahead = seconds
        self._write()

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._world + self._ahead:.3f}")
        new.replace(self._file)


def main(file: Path) -> None:
    """kmsd, with the words that are left in sys.argv."""
    real = time.time

    def moved() -> float:
        return real() + float(file.read_bytes())

    time.time = moved
    kmsd()


if __name__ == "__main__":
    main(Path(sys.argv.pop(1)))
