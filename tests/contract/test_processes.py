"""The small parent of `kmsd run`, with small children instead of kmsd's own."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from msgspec import convert
from structlog.typing import EventDict

from kmsd import processes
from kmsd.settings import Configuration

STEADY = "import time; time.sleep(60)"
SHORT = "raise SystemExit(75)"


@dataclass
class Parent:
    """What is running, and what was logged so far."""

    task: "asyncio.Task[int]"
    stopped: asyncio.Event
    logs: list[EventDict]

    def of(self, event: str, child: str) -> list[EventDict]:
        return [one for one in self.logs if (one["event"], one.get("child")) == (event, child)]

    def pid(self, child: str) -> int:
        """Of the one that runs now."""
        pid: int = self.of("started", child)[-1]["pid"]
        return pid

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110  a process says nothing when it starts
                await asyncio.sleep(0.01)

    async def stop(self) -> int:
        self.stopped.set()
        return await self.task


@asynccontextmanager
async def parent(**programs: str) -> AsyncIterator[Parent]:
    """The parent of Python programs, by child name (`_` stands for `-`)."""
    commands = {
        name.replace("_", "-"): [sys.executable, "-c", program]
        for name, program in programs.items()
    }
    stopped = asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(processes.keep(commands, stopped))
        made = Parent(task, stopped, logs)
        try:
            await made.until(lambda: all(made.of("started", name) for name in commands))
            yield made
        finally:
            await made.stop()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_child_that_is_killed_is_started_again_at_once() -> None:
    async with parent(keeper=STEADY, signer_1=STEADY) as running:
        first, other = running.pid("signer-1"), running.pid("keeper")
        os.kill(first, signal.SIGKILL)
        await running.until(lambda: len(running.of("started", "signer-1")) == 2)
        assert running.pid("signer-1") != first
        (ended,) = running.of("ended", "signer-1")
        assert (ended["status"], ended["again_in"]) == (-signal.SIGKILL, 0.0)
        assert running.pid("keeper") == other
        assert alive(other)


async def test_one_that_keeps_ending_is_started_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "LONGEST_PAUSE", 0.2)
    async with parent(signer_1=SHORT) as running:
        await running.until(lambda: len(running.of("ended", "signer-1")) == 4)
        pauses = [one["again_in"] for one in running.of("ended", "signer-1")]
        assert pauses == [0.0, 0.2, 0.2, 0.2]
        assert {one["status"] for one in running.of("ended", "signer-1")} == {75}


async def test_one_that_ran_steadily_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STEADY_AFTER", 0.0)
    async with parent(signer_1=SHORT) as running:
        await running.until(lambda: len(running.of("ended", "signer-1")) == 3)
        assert {one["again_in"] for one in running.of("ended", "signer-1")} == {0.0}


async def test_signers_stop_first_and_the_repository_last(tmp_path: Path) -> None:
    def saying(name: str) -> str:
        """Writes its name into a file when it is ended."""
        return (
            "import signal, sys, time\n"
            "def end(*_):\n"
            "    time.sleep(0.1)\n"
            f"    open({str(tmp_path / 'ended')!r}, 'a').write({name + ' '!r})\n"
            "    sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, end)\n"
            f"open({str(tmp_path / name)!r}, 'w').close()\n"
            "time.sleep(60)\n"
        )

    names = ("keeper", "repository", "signer_1", "signer_2")
    async with parent(**{name: saying(name) for name in names}) as running:
        await running.until(lambda: all((tmp_path / name).exists() for name in names))
        assert await running.stop() == 0
    ended = (tmp_path / "ended").read_text().split()
    assert sorted(ended[:2]) == ["signer_1", "signer_2"]
    assert ended[2:] == ["keeper", "repository"]


async def test_one_that_does_not_stop_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "STOP_WITHIN", 0.2)
    deaf = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'deaf')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    async with parent(keeper=deaf, signer_1=STEADY) as running:
        pids = [running.pid("keeper"), running.pid("signer-1")]
        await running.until((tmp_path / "deaf").exists)
        await running.stop()
        assert not any(alive(pid) for pid in pids)
        assert [one["pid"] for one in running.of("killed", "keeper")] == pids[:1]


async def test_a_parent_that_is_cancelled_leaves_no_child() -> None:
    async with parent(keeper=STEADY, signer_1=STEADY) as running:
        pids = [running.pid("keeper"), running.pid("signer-1")]
        running.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running.task
        assert not any(alive(pid) for pid in pids)
        running.task = asyncio.create_task(asyncio.sleep(0, 0))


async def test_a_program_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "LONGEST_PAUSE", 0.05)
    stopped = asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(processes.keep({"keeper": ["/nowhere/kmsd"]}, stopped))
        await asyncio.sleep(0.3)
        stopped.set()
        assert await task == 0
    assert len([one for one in logs if one["event"] == "not_started"]) > 1


def test_the_processes_are_those_the_configuration_asks_for() -> None:
    tables = {
        "repository": {"public_url": "https://cr.example.org/"},
        "authorities": {},
        "issuers": {},
        "profiles": {},
    }
    without = convert(tables, Configuration)
    found = processes.commands(without, Path("/etc/kmsd/kmsd.toml"), 2)
    assert list(found) == ["keeper", "signer-1", "signer-2"]
    assert found["signer-2"] == [
        sys.executable,
        "-m",
        "kmsd",
        "--config",
        "/etc/kmsd/kmsd.toml",
        "signer",
        "--index",
        "2",
    ]
    tables["repository"] |= {"certificate": "a", "key": "b"}
    with_one = convert(tables, Configuration)
    assert "repository" in processes.commands(with_one, Path("k"), 1)
