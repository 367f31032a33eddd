"""The keeper process: construct, inject, run.

The only process that writes keys, talks to STI-PAs and STI-CAs, and changes state. It starts
while the HSM, the database, the STI-PA or an STI-CA is absent and goes on when they come. On a
store that several keepers share, it does so while it is the one that acts (`standby`).
"""

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import structlog
from kmsapi.v1 import admin_pb2_grpc

from kmsd.admin import SERVICE, Admin
from kmsd.advice import Advice
from kmsd.anchors import CRL_EVERY, Anchors
from kmsd.candidates import Candidates
from kmsd.config import anew
from kmsd.counterparts import Counterparts
from kmsd.errors import KmsdError, Precondition
from kmsd.hsmthread import HsmThread
from kmsd.issuance import Issuance
from kmsd.keeper import Keeper
from kmsd.keypool import KeyPool
from kmsd.listen import Listener
from kmsd.movers import Movers
from kmsd.outlook import Outlook
from kmsd.overview import Overview
from kmsd.rehearsal import Rehearsal
from kmsd.repository import Repository
from kmsd.revoking import Revoking
from kmsd.rollback import Rollback
from kmsd.settings import Configuration, with_staging
from kmsd.standby import Standby
from kmsd.steps import Steps, clock
from kmsd.store import Store
from kmsd.switch import Switch

REFRESH_EVERY = min(CRL_EVERY, 300)
"""Seconds between two looks at whether trust material is due."""
SETTLE_EVERY = 60
"""Seconds between two looks at whether an account's key change was left unfinished."""

log = structlog.get_logger()


async def run(configuration: Configuration) -> int:
    """Serves until SIGTERM or SIGINT; gives the process's exit status."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    run_folder = Path(configuration.run)
    await asyncio.to_thread(
        Path(configuration.state).mkdir, mode=0o750, parents=True, exist_ok=True
    )
    async with AsyncExitStack() as opened:
        password = anew(configuration.store.password, "store.password")
        store = await asyncio.to_thread(Store.at, configuration.store.url, password)
        opened.callback(store.close)
        standby = Standby(store, configuration.hsm.token)
        opened.push_async_callback(standby.close)
        await standby.first_try()
        hsm = HsmThread(configuration.hsm, run_folder)
        opened.push_async_callback(hsm.close)
        staged = with_staging(configuration)
        counterparts = Counterparts(staged, store, hsm)
        await counterparts.open()
        opened.push_async_callback(counterparts.close)
        repository = Repository(configuration.repository)
        anchors = Anchors(store, counterparts, clock)
        switch = Switch(store, Path(configuration.keyring), run_folder)
        candidates = Candidates(configuration.profiles, store, clock)
        issuance = Issuance(staged, store, hsm, counterparts, candidates, anchors, clock)
        steps = Steps(staged, hsm, candidates, issuance, anchors, repository, switch, clock)
        movers = Movers(configuration.profiles, store, steps, switch, clock)
        opened.push_async_callback(movers.close)
        advice = Advice(configuration, store, counterparts, candidates, anchors, clock)
        opened.push_async_callback(advice.close)
        pool = KeyPool(configuration.profiles, store, hsm, clock)
        keeper = Keeper(configuration, store, movers, advice, pool, switch, clock)
        revoking = Revoking(store, keeper, movers, counterparts, clock)
        rollback = Rollback(configuration, store, keeper, movers, hsm, clock)
        admin = Admin(
            configuration,
            store,
            keeper,
            movers,
            Overview(configuration, store, hsm, anchors, revoking, switch, standby, clock),
            anchors,
            revoking,
            rollback,
            Rehearsal(configuration, store, keeper, movers, clock),
            Outlook(configuration, store, clock),
            counterparts,
            clock,
        )

        listener = Listener([SERVICE], share_port=False)
        admin_pb2_grpc.add_AdminServicer_to_server(admin, listener.server)
        opened.enter_context(_bound(listener, configuration))
        await listener.set_serving(True)
        await listener.server.start()
        opened.push_async_callback(listener.server.stop, 1.0)
        log.info(
            "keeping", address=configuration.keeper.listen, profiles=len(configuration.profiles)
        )

        async def act() -> None:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(keeper.run())
                    tasks.create_task(revoking.run())
                    tasks.create_task(pool.run())
                    tasks.create_task(_settle(counterparts))
                    tasks.create_task(_refresh(anchors, configuration))
            finally:
                await movers.close()

        work = [
            asyncio.create_task(standby.run(act, keeper.follow)),
            asyncio.create_task(stopped.wait()),
        ]
        finished, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        for task in finished:
            task.result()
    log.info("stopped")
    return 0


@contextmanager
def _bound(listener: Listener, configuration: Configuration) -> Iterator[None]:
    """With the socket, which is this process's alone: keepers of one host may share a store."""
    address = configuration.keeper.listen
    path = Path(address.removeprefix("unix:"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Precondition(
                "KEEPER_ALREADY_RUNNING",
                f"Another keeper listens on {path}.",
                next_step="Stop that one first: systemctl stop kmsd-keeper.",
            ) from None
        path.unlink(missing_ok=True)  # of a keeper that was killed
        mask = os.umask(0o117)
        try:
            listener.bind(address, None)
        finally:
            os.umask(mask)
        path.chmod(int(configuration.keeper.socket_mode, 8))
        yield


async def _settle(counterparts: Counterparts) -> None:
    """Ends the key changes of accounts that were begun before a restart, or failed."""
    while True:
        with suppress(KmsdError):
            await counterparts.settle()
        await asyncio.sleep(SETTLE_EVERY)


async def _refresh(anchors: Anchors, configuration: Configuration) -> None:
    while True:
        for name in configuration.authorities:
            await anchors.refresh(name)
        await asyncio.sleep(REFRESH_EVERY)
