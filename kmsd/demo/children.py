"""The processes of the demo: started, watched, and ended with everything they started.

Each is the leader of a session of its own. So Ctrl-C and a closed terminal reach the demo alone,
which ends its children in order; and what a killed child leaves behind is found by its session.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kmsd.errors import Unavailable

END_WITHIN = 15.0
"""Seconds from SIGTERM to SIGKILL."""

Child = subprocess.Popen[bytes]


class Children:
    """The long-lived processes by their names; the log of each is `<folder>/<name>.log`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, Child] = {}

    def start(self, name: str, command: list[str]) -> Child:
        """Starts one; its standard output is a pipe."""
        with (self._folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(  # noqa: S603  our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._running[name] = child
        return child

    def run(self, command: list[str], *, quiet: bool) -> int:
        """Runs a short one on our own standard output (quiet: on none); its exit status.

        Raises Unavailable when a long-lived one ends meanwhile: then it would wait for ever.
        """
        short = subprocess.Popen(  # noqa: S603  our own program
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else None,
            start_new_session=True,
        )
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return short.wait(0.1)
                self.expect_all()
        finally:
            _end(short)

    def expect_all(self) -> None:
        """Raises Unavailable when one has ended by itself."""
        for name, child in self._running.items():
            if child.poll() is not None:
                raise Unavailable("DEMO_CHILD_ENDED", f"{name} {_how(child.returncode)}.")

    def end(self) -> None:
        """Ends all of them, the youngest first, and what they have left behind."""
        for child in reversed(self._running.values()):
            _end(child)

    def last_words(self, lines: int) -> Iterator[tuple[str, list[str]]]:
        """The name and the last lines of the logs that are not empty."""
        for name in self._running:
            said = (self._folder / f"{name}.log").read_text(errors="replace").splitlines()
            if said:
                yield name, said[-lines:]


def _how(status: int) -> str:
    if status < 0:
        return f"was killed ({signal.Signals(-status).name})"
    return f"ended with exit status {status}"


def _end(child: Child) -> None:
    child.terminate()
    try:
        child.wait(END_WITHIN)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()
    deadline = time.monotonic() + END_WITHIN
    number = signal.SIGTERM
    while left := _session(child.pid):
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        time.sleep(0.05)
        number = signal.SIGKILL if time.monotonic() > deadline else number


def _session(leader: int) -> list[int]:
    """The processes of a session. Where there is no /proc: none."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(ValueError, ProcessLookupError):
            if os.getsid(int(name)) == leader:
                found.append(int(name))
    return found
