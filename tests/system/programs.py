"""kmsd's own processes, started as an operator starts them and ended by their pid."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def program(log: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m WORDS`, its standard error appended to `log`; terminated at the end."""
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def kill(child: subprocess.Popen[bytes]) -> None:
    """kill -9, and wait until it is gone."""
    child.send_signal(signal.SIGKILL)
    child.wait()


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def until(what: str, holds: Callable[[], object], seconds: float = 40.0) -> None:
    """Waits for a condition; names it when it does not come."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
