"""`kmsd run`: the keeper, the signers and, where it is configured, the repository under one
small parent, for containers and for the demo. On a signing host systemd does this.

Processes are spawned, never forked after gRPC or PKCS#11 was touched. One that ends is started
again, at once the first time and then ever more slowly. At the end the signers stop first and the
repository last, so that nothing is signed whose chain cannot be fetched any more.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import structlog

from kmsd.settings import Configuration

LONGEST_PAUSE = 10.0
STEADY_AFTER = 30.0
STOP_WITHIN = 10.0

log = structlog.get_logger()


def commands(configuration: Configuration, config: Path, signers: int) -> dict[str, list[str]]:
    """Each process by its name, as the arguments of this same program."""
    found = {"keeper": ["keeper"]}
    if configuration.repository.certificate:
        found["repository"] = ["repository"]
    found |= {f"signer-{n}": ["signer", "--index", str(n)] for n in range(1, signers + 1)}
    return {
        name: [sys.executable, "-m", "kmsd", "--config", str(config), *words]
        for name, words in found.items()
    }


async def run(configuration: Configuration, config: Path) -> int:
    """Keeps the processes running until SIGTERM or SIGINT, then stops them in order."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    signers = configuration.signer.processes or os.cpu_count() or 1
    return await keep(commands(configuration, config, signers), stopped)


async def keep(commands: Mapping[str, Sequence[str]], stopped: asyncio.Event) -> int:
    """Keeps these commands running, by name, until `stopped`; gives the exit status."""
    children = {
        name: asyncio.create_task(_keep(name, command)) for name, command in commands.items()
    }
    try:
        await stopped.wait()
    finally:
        for first in ("signer", "keeper", "repository"):
            leaving = [task for name, task in children.items() if name.startswith(first)]
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
    return 0


async def _keep(name: str, command: Sequence[str]) -> NoReturn:
    """Starts a child again whenever it ends; ends it when cancelled."""
    failures = 0
    while True:
        started = time.monotonic()
        try:
            status: int | None = await _run(name, command)
        except OSError as error:  # no memory, no processes left
            log.error("not_started", child=name, error=error.strerror)
            status = None
        failures = 0 if time.monotonic() - started > STEADY_AFTER else failures
        pause = min(2.0 ** (failures - 1), LONGEST_PAUSE) if failures else 0.0
        failures += 1
        log.warning("ended", child=name, status=status, again_in=pause)
        await asyncio.sleep(pause)


async def _run(name: str, command: Sequence[str]) -> int:
    """One child from start to end; gives its exit status."""
    # Its own group: Ctrl-C in a terminal reaches the parent alone, which stops in order.
    process = await asyncio.create_subprocess_exec(*command, process_group=0)
    log.info("started", child=name, pid=process.pid)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_WITHIN)
            except TimeoutError:
                log.warning("killed", child=name, pid=process.pid)
                process.kill()
                await process.wait()
