"""`kmsd run`: the keeper, the signers and, where it is configured, the repository under one
small parent, for containers and for the demo. On a signing host systemd does this.

Processes are spawned, never forked after gRPC or PKCS#11 was touched. One that ends is started
again, at once the first time and then ever more slowly.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

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
    children = [
        asyncio.create_task(_keep(name, command, stopped))
        for name, command in commands(configuration, config, signers).items()
    ]
    await stopped.wait()
    await asyncio.gather(*children)
    return 0


async def _keep(name: str, command: list[str], stopped: asyncio.Event) -> None:
    failures = 0
    while True:
        started = time.monotonic()
        # Its own group: Ctrl-C in a terminal reaches the parent alone, which stops in order.
        process = await asyncio.create_subprocess_exec(*command, process_group=0)
        log.info("started", child=name, pid=process.pid)
        ended = asyncio.create_task(process.wait())
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.is_set():
            await _stop(process, ended)
            return
        stop.cancel()
        failures = 0 if time.monotonic() - started > STEADY_AFTER else failures
        pause = min(2.0 ** (failures - 1), LONGEST_PAUSE) if failures else 0.0
        failures += 1
        log.warning("ended", child=name, status=ended.result(), again_in=pause)
        try:
            await asyncio.wait_for(stopped.wait(), pause)
        except TimeoutError:
            continue
        return


async def _stop(process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(asyncio.shield(ended), STOP_WITHIN)
    except TimeoutError:
        process.kill()
        await ended
