"""Keepers that kill themselves (kill -9) at a moment of the test's choice.

`python -m tests.system.killed CONFIG LOGFILE ARMED` is a nursery: it has loaded what a keeper
loads, and becomes one by forking, as often as it is told to, because a new interpreter takes a
second and the kill matrix needs a hundred. What runs then is what `kmsd keeper` runs, with doors
wrapped: the actions of the machine, and everything a step leaves behind in the world. When
the passage that the file ARMED names comes, the process is no more; so whatever has to hold
afterwards has to be in the store, the HSM, the keyring, at the STI-CA or the repository.
"""

import asyncio
import functools
import inspect
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmsd import keyring, keyroom, log
from kmsd.acme.transport import Transport
from kmsd.authority import Authority
from kmsd.config import load
from kmsd.hsm import Hsm
from kmsd.keyring import KeyringWriter
from kmsd.repository import Repository
from kmsd.steps import Steps
from kmsd.store import Store
from tests.system.programs import until

Name = Callable[..., str]
"""From the positional arguments of a call to what its passage is called."""

DOORS: tuple[tuple[Any, str, Name], ...] = (
    (Steps, "perform", lambda _, __, action: type(action).__name__),
    (Store, "insert", lambda _, credential, *__: _stored(credential)),
    (Store, "save_all", lambda _, credentials, *__: _stored(next(iter(credentials)))),
    (Store, "save_account", lambda *_: "store: account"),
    (Store, "next_epoch", lambda *_: "store: epoch"),
    (Hsm, "generate", lambda _, __, label, ___: f"HSM: {label.split()[1]} key made"),
    (Hsm, "destroy", lambda *_: "HSM: key destroyed"),
    (Authority, "spc_token", lambda *_: "STI-PA: SPC token"),
    (Transport, "post", lambda *call: f"STI-CA: {call[4]}"),
    (Repository, "publish", lambda *_: "repository: chain"),
    (os, "link", lambda *_: "repository: file"),
    (KeyringWriter, "switch", lambda *_: "keyring: switch"),
    (KeyringWriter, "announce", lambda *_: "keyring: announcement"),
    (Path, "replace", lambda _, to: f"keyring: {to.name.partition('-')[0]}"),
)
"""What is wrapped. Passages of one name are numbered from the second on: `store: account 2`."""


class Keepers:
    """The nursery from the test's side; at most one keeper lives at a time."""

    def __init__(self, child: "subprocess.Popen[bytes]", armed: Path) -> None:
        self._child = child
        self._armed = armed
        self._told = ""
        self.pid = 0

    def start(self) -> None:
        """Another keeper; not waited for."""
        assert self.pid == 0
        assert self._child.stdin is not None
        self._child.stdin.write(b"\n")
        until("it is born", self._hears)
        self.pid = int(self._told)

    def arm(self, point: str) -> None:
        """The keeper dies at `point`, "before NAME" or "after NAME", counted from now on."""
        new = self._armed.with_suffix(".new")
        new.write_text(point)
        new.replace(self._armed)

    def passed(self) -> list[str]:
        """Every passage since it was armed, in order."""
        return self._armed.with_suffix(".passed").read_text().splitlines()

    def is_dead(self) -> bool:
        """Whether it has ended meanwhile."""
        if self.pid and self._hears():
            self.pid = 0
        return self.pid == 0

    def until_dead(self) -> int:
        """Waits until it has ended; what `subprocess` calls its return code."""
        until("the keeper is dead", self.is_dead)
        return int(self._told)

    def kill(self) -> None:
        """kill -9 from outside, wherever it is; nothing if none lives."""
        if not self.is_dead():
            os.kill(self.pid, signal.SIGKILL)
            self.until_dead()

    def _hears(self) -> bool:
        assert self._child.stdout is not None
        assert self._child.poll() is None, "the nursery has ended"
        # Without a buffer: a line that is in one is nothing to be read any more, says select.
        if not select.select([self._child.stdout], [], [], 0)[0]:
            return False
        self._told = self._child.stdout.readline().decode()
        return True


@contextmanager
def nursery(config: Path, folder: Path) -> Iterator[Keepers]:
    """Keepers of the key room with this kmsd.toml; they log to keeper.log in `folder`."""
    armed = folder / "armed"
    armed.write_text("")
    paths = [str(path) for path in (config, folder / "keeper.log", armed)]
    words = [sys.executable, "-m", "tests.system.killed", *paths]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, bufsize=0) as child:
        keepers = Keepers(child, armed)
        try:
            yield keepers
        finally:
            keepers.kill()
            child.kill()


class Passages:
    """Where the keeper is on its way past the doors, and the end of that way."""

    def __init__(self, armed: Path) -> None:
        self._armed = armed
        self._point: tuple[int, str] = (0, "")
        self._count: Counter[str] = Counter()

    def begin(self, name: str) -> str:
        """What this passage is called; may not return."""
        stat = self._armed.stat()
        if stat.st_mtime_ns != self._point[0]:
            self._point = (stat.st_mtime_ns, self._armed.read_text())
            self._count.clear()
            self._armed.with_suffix(".passed").unlink(missing_ok=True)
        self._count[name] += 1
        number = self._count[name]
        name = name if number == 1 else f"{name} {number}"
        with self._armed.with_suffix(".passed").open("a") as file:
            file.write(f"{name}\n")
        self._die_at(f"before {name}")
        return name

    def end(self, name: str) -> None:
        """It has returned, and nobody knows it yet; may not return."""
        self._die_at(f"after {name}")

    def _die_at(self, point: str) -> None:
        if point == self._point[1]:
            self._armed.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)


def wrap(passages: Passages) -> None:
    """Puts `passages` into every door."""
    for owner, method, name in DOORS:
        inside = getattr(owner, method)
        wrapped = _waiting if inspect.iscoroutinefunction(inside) else _blocking
        setattr(owner, method, wrapped(inside, name, passages))


def _blocking(inside: Any, name: Name, passages: Passages) -> Any:
    @functools.wraps(inside)
    def call(*arguments: Any, **named: Any) -> Any:
        passage = passages.begin(name(*arguments))
        result = inside(*arguments, **named)
        passages.end(passage)
        return result

    return call


def _waiting(inside: Any, name: Name, passages: Passages) -> Any:
    @functools.wraps(inside)
    async def call(*arguments: Any, **named: Any) -> Any:
        passage = passages.begin(name(*arguments))
        result = await inside(*arguments, **named)
        passages.end(passage)
        return result

    return call


def _stored(credential: Any) -> str:
    return f"store: {type(credential.state).__name__}"


def main(config: str, file: str, armed: str) -> None:
    """A line on standard input: a keeper is born, its pid is told, and later how it ended."""
    while sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            _keeper(config, file, Path(armed))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _keeper(config: str, file: str, armed: Path) -> None:
    """`kmsd keeper`, with its doors wrapped, from here on."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, to in ((0, nothing), (1, descriptor), (2, descriptor)):
        os.dup2(to, number)
    wrap(Passages(armed))
    # Every write to the keyring folds it, which is otherwise one of many that does.
    keyring.KEPT_DELTAS, keyring.FOLDED_SHARE = 1, 1 << 20
    configuration = load(Path(config))
    log.configure("keeper")
    sys.exit(asyncio.run(keyroom.run(configuration)))


if __name__ == "__main__":
    main(*sys.argv[1:])
