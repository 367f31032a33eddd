"""CPU time, memory and connections of a process, from Linux's /proc (proc(5))."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")
_ESTABLISHED: Final = "01"


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that the processes have used since they began, user and system."""
    return sum(_cpu_ticks(pid) for pid in pids) / TICKS


def peak_mib(pids: Iterable[int]) -> float:
    """Peak resident memory (VmHWM) of the largest of the processes; 0 when there are none."""
    return max((_peak_kib(pid) for pid in pids), default=0) / 1024


def connections(pid: int, port: int) -> int:
    """How many TCP connections to the local `port` a process has accepted."""
    accepted = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
                accepted.add(f"socket:[{fields[9]}]")
    return sum(_target(file) in accepted for file in Path(f"/proc/{pid}/fd").iterdir())


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    system = os.uname()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "system": f"{system.sysname} {system.release} {system.machine}",
        "load_before": os.getloadavg()[0],
    }


def _cpu_ticks(pid: int) -> int:
    # The second field is the program's name in brackets, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _peak_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return ""
