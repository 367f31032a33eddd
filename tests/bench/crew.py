"""The load processes as the bench sees them: started once, given one order after the other.

The bench and a load process speak lines of JSON over its standard input and output. Separate
programs, not forks: gRPC and PKCS#11 survive no fork.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from tests.bench.figures import Order, Round, Setup, Tally, round_of
from tests.bench.proc import cpu_seconds, peak_mib

ROOT = Path(__file__).parent.parent.parent
LEAD = 0.05
"""Seconds for every process to have its order."""

Message = TypeVar("Message")


class Crew:
    """Load processes of one kind. `pids`: theirs."""

    def __init__(self, processes: "Sequence[subprocess.Popen[bytes]]") -> None:
        self._processes = processes
        self.pids = [one.pid for one in processes]
        for one in processes:
            _read(one, str)

    def reconnect(self) -> None:
        """Every process closes its connections and opens new ones."""
        for one in self._processes:
            _write(one, None)
        for one in self._processes:
            _read(one, str)

    def round(
        self,
        seconds: float,
        *,
        warm: float,
        servers: Sequence[int] = (),
        frame: int = 1,
        at_once: Sequence[int] = (1,),
        rate: float = 0.0,
    ) -> Round:
        """One round. servers: pids whose CPU time is the signers'; none: the crew is the signer.

        warm: seconds of load before what counts. at_once: for each process, or one for all.
        rate: of all processes together.
        """
        begin = time.monotonic() + LEAD + warm
        each = tuple(at_once) * (len(self._processes) if len(at_once) == 1 else 1)
        busy = [one for one, number in zip(self._processes, each, strict=True) if number]
        for one, number in zip(self._processes, each, strict=True):
            if number:
                share = rate / len(busy)
                _write(one, Order(begin, begin + seconds, frame, number, share))
        time.sleep(max(0.0, begin - time.monotonic()))
        before = cpu_seconds(servers), cpu_seconds(self.pids)
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        after = cpu_seconds(servers), cpu_seconds(self.pids)
        tally = Tally()
        for one in busy:
            tally.merge(_read(one, Tally))
        signers, clients = after[0] - before[0], after[1] - before[1]
        if not servers:
            signers, clients = clients, 0.0
        return round_of(tally, seconds, signers, clients)

    def peak_mib(self) -> float:
        """Peak memory of the largest process."""
        return peak_mib(self.pids)


@contextmanager
def crew(setup: Setup, processes: int) -> Iterator[Crew]:
    """Load processes, connected and ready; ended on leaving."""
    words = (sys.executable, "-m", "tests.bench.worker", msgspec.json.encode(setup).decode())
    with ExitStack() as stack:
        children = []
        for _ in range(processes):
            child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
            stack.callback(_end, child)
            children.append(child)
        yield Crew(children)


def _write(process: "subprocess.Popen[bytes]", message: Order | None) -> None:
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(message) + b"\n")
    process.stdin.flush()


def _read(process: "subprocess.Popen[bytes]", kind: type[Message]) -> Message:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a load process ended with status {process.wait()}; see above why")
    return msgspec.json.decode(line, type=kind)


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
