"""Signers that die under load: a caller through `kmsd_client` sees no failed call.

Two real signers share a port under the supervisor of `kmsd run`; one is killed with kill -9, is
started again, and so on. Deadlines are long: what is held is that no call fails, not how fast.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from kmsd_client import AsyncClient, Client, Overloaded, Signed, SigningError

from kmsd.model import BirthRecord
from kmsd.processes import keep
from tests.contract.signing_contract import DEST, GOOD, ORIG
from tests.contract.tokens import read_identity, verify_signature
from tests.system.programs import until
from tests.system.signing_host import SigningHost
from tests.system.test_signer import public, tls

CALLERS = 200
THREADS = 24
BETWEEN = 200
"""Calls that are signed between two kills, at least."""
PATIENCE = 60
"""Seconds."""


@dataclass
class Pair:
    """Two signers of one host under their supervisor."""

    host: SigningHost
    key: BirthRecord

    def pid(self, index: int) -> int:
        seen = self.host.acknowledged(index)
        assert seen is not None
        return seen.acknowledgement.pid

    def kill(self, index: int) -> int:
        """kill -9; gives the pid that was."""
        pid = self.pid(index)
        os.kill(pid, signal.SIGKILL)
        return pid

    def until_replaced(self, index: int, dead: int) -> None:
        until(f"signer {index} is another process", lambda: self.pid(index) != dead)
        self.host.until_serving(index)


@asynccontextmanager
async def supervised(folder: Path) -> AsyncIterator[Pair]:
    host = SigningHost(folder)
    key = host.key()
    host.activate(host.entry(key))
    words = [sys.executable, "-m", "kmsd", "--config", str(host.config), "signer", "--index"]
    stopped = asyncio.Event()
    parent = asyncio.create_task(
        keep({f"signer-{index}": [*words, str(index)] for index in (1, 2)}, stopped)
    )
    try:
        for index in (1, 2):
            await asyncio.to_thread(host.until_serving, index)
        yield Pair(host, key)
    finally:
        stopped.set()
        await parent


@dataclass
class Outcomes:
    """What became of the calls so far."""

    signed: list[Signed]
    failed: list[SigningError]

    def more_than(self, number: int) -> Callable[[], bool]:
        """Whether so many are signed, or it makes no sense to wait."""
        enough = len(self.signed) + number
        return lambda: len(self.signed) > enough or bool(self.failed)


@asynccontextmanager
async def many_callers(pair: Pair) -> AsyncIterator[Outcomes]:
    """CALLERS of one client, one call after the other each, for the length of the block."""
    outcomes = Outcomes([], [])
    over = asyncio.Event()

    async def calls(client: AsyncClient) -> None:
        while not over.is_set():
            try:
                outcomes.signed.append(await client.sign(GOOD))
            except Overloaded:  # the one that is left may say so; its callers come again
                await asyncio.sleep(0.05)
            except SigningError as error:
                outcomes.failed.append(error)

    target = f"localhost:{pair.host.port}"
    files = tls(pair.host.caller("as1"))
    async with AsyncClient(target, tls=files, profile="acme", timeout=PATIENCE) as client:
        callers = [asyncio.create_task(calls(client)) for _ in range(CALLERS)]
        try:
            yield outcomes
        finally:
            over.set()
            await asyncio.gather(*callers)


@contextmanager
def many_threads(pair: Pair) -> Iterator[Outcomes]:
    """The same with the blocking client and THREADS threads."""
    outcomes = Outcomes([], [])
    over = threading.Event()

    def calls(client: Client) -> None:
        while not over.is_set():
            try:
                outcomes.signed.append(client.sign_shaken(ORIG, DEST, "A"))
            except Overloaded:
                over.wait(0.05)
            except SigningError as error:
                outcomes.failed.append(error)

    target = f"localhost:{pair.host.port}"
    files = tls(pair.host.caller("as1"))
    with Client(target, tls=files, profile="acme", timeout=PATIENCE) as client:
        callers = [threading.Thread(target=calls, args=(client,)) for _ in range(THREADS)]
        for caller in callers:
            caller.start()
        try:
            yield outcomes
        finally:
            over.set()
            for caller in callers:
                caller.join()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with supervised(tmp_path) as pair:
        yield pair


async def test_no_call_fails_when_one_signer_of_two_is_killed_under_load(pair: Pair) -> None:
    async with many_callers(pair) as outcomes:
        await soon(outcomes.more_than(BETWEEN))
        pair.kill(1)
        await soon(outcomes.more_than(2 * BETWEEN))
    held(outcomes, pair)


async def test_no_call_fails_when_both_signers_are_killed_in_turn_and_started_again(
    pair: Pair,
) -> None:
    async with many_callers(pair) as outcomes:
        for index in (1, 2, 1):
            await soon(outcomes.more_than(BETWEEN))
            dead = pair.kill(index)
            await soon(outcomes.more_than(BETWEEN))
            await asyncio.to_thread(pair.until_replaced, index, dead)
    held(outcomes, pair)


async def test_no_call_of_many_threads_fails_when_signers_are_killed_in_turn(pair: Pair) -> None:
    with many_threads(pair) as outcomes:
        for index in (1, 2):
            await soon(outcomes.more_than(BETWEEN))
            dead = pair.kill(index)
            await soon(outcomes.more_than(BETWEEN))
            await asyncio.to_thread(pair.until_replaced, index, dead)
    held(outcomes, pair)


async def soon(holds: Callable[[], bool]) -> None:
    await asyncio.to_thread(partial(until, "there is progress", holds, PATIENCE))


def held(outcomes: Outcomes, pair: Pair) -> None:
    """No call failed, no two callers have the same signature, and signatures are right."""
    assert not outcomes.failed, outcomes.failed[:3]
    assert len({one.origid for one in outcomes.signed}) == len(outcomes.signed)
    for one in outcomes.signed[:: len(outcomes.signed) // 20]:
        verify_signature(read_identity(str(one)), public(pair.key))
