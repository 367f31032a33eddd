"""The signer: one SKS process. Wiring only: HSM login, keyring, gRPC server, acknowledgements.

It signs and does nothing else: no store, no outgoing connection. Crash-only: when the HSM fails
under it, it answers UNAVAILABLE, turns its health to NOT_SERVING and exits to be replaced.
"""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import structlog
from kmsapi.v1 import signing_pb2_grpc
from msgspec.structs import replace

from kmsd.access import Grants
from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.hsm import Hsm
from kmsd.keyring import KeyringReader
from kmsd.lanes import Lanes
from kmsd.listen import Listener
from kmsd.live import Live
from kmsd.login import open_hsm
from kmsd.metrics import MetricsFile, State
from kmsd.presence import MOST_NAMED, NOT_SERVING, TOO_MANY, Acknowledgement, Presence
from kmsd.settings import Configuration
from kmsd.signing import SERVICE, Signing

HSM_LOST = 75
"""Exit status after a lost HSM (EX_TEMPFAIL): the supervisor starts a new process at once."""
FOLLOW_EVERY = 0.05
"""Seconds between two looks at the keyring."""
LOOK_AGAIN_EVERY = 1.0
"""Seconds between two searches for keys that the HSM did not have."""
INTERPRETER_TURN = 0.0001
"""Seconds that the event loop and the lanes leave each other the interpreter for. A signature is
made without it, but each needs it back three times: with Python's 5 ms the HSM waits for the loop,
and a unary call costs a sixth more CPU time (measured)."""
WATCH_EVERY = 0.25
"""Seconds between two looks whether the HSM answers."""
LONGEST_WAIT = 0.040
"""Seconds a frame may wait for the HSM before new ones are refused."""
METRICS_EVERY = 5.0
"""Seconds between two writes of the metrics."""
DRAIN = 5.0

log = structlog.get_logger()


async def run(configuration: Configuration, index: int) -> int:
    """Serves until SIGTERM or SIGINT; gives the process's exit status."""
    sys.setswitchinterval(INTERPRETER_TURN)
    process = Process(configuration, index)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop, 0)
    status = await process.run()
    if process.is_stuck:
        sys.stderr.flush()
        os._exit(status)  # a thread in the HSM would be waited for, and may never come back
    return status


class Process:
    """One signer from start to end. is_stuck: its HSM was lost, and was not closed."""

    def __init__(self, configuration: Configuration, index: int) -> None:
        self._configuration = configuration
        self._index = index
        self._run = Path(configuration.run)
        self._started = int(time.time())
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._said: Acknowledgement | None = None
        self._look_again = 0.0
        self.is_stuck = False
        self._at_work: tuple[Live, Lanes] | None = None

    def stop(self, status: int) -> None:
        """Ends `run` with this exit status; the first word counts."""
        if not self._status.done():
            self._status.set_result(status)

    async def run(self) -> int:
        settings = self._configuration.signer
        with Presence(self._run, self._index) as presence:
            self._speak(presence, trouble="It is starting.")
            listener = Listener([SERVICE], share_port=True)
            grants = Grants(self._configuration.callers)
            signing = Signing(grants, settings, self._configuration.profiles)
            signing_pb2_grpc.add_SigningServicer_to_server(signing, listener.server)
            for address in settings.listen:
                listener.bind(address, settings.tls)
            await listener.set_serving(False)
            await listener.server.start()
            log.info("listening", index=self._index, addresses=",".join(settings.listen))
            work = asyncio.create_task(self._serve(presence, listener, signing))
            metrics = asyncio.create_task(self._publish(signing))
            try:
                ends: set[asyncio.Future[Any]] = {work, self._status}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
                status = self._status.result()
                await listener.set_serving(False)
                stopping = asyncio.create_task(listener.server.stop(DRAIN if status == 0 else 0.2))
                await asyncio.sleep(0)  # first it says that it goes away
                signing.end()
                await stopping
            finally:
                work.cancel()
                metrics.cancel()
                await asyncio.gather(work, metrics, return_exceptions=True)
        log.info("stopped", index=self._index, status=status)
        return status

    async def _serve(self, presence: Presence, listener: Listener, signing: Signing) -> None:
        """Opens the HSM when it can be opened, then follows the keyring for ever."""
        hsm = await self._open(presence, signing)
        async with AsyncExitStack() as opened:
            opened.push_async_callback(self._close, hsm.close)
            lanes = await asyncio.to_thread(
                Lanes,
                hsm,
                self._configuration.hsm.threads,
                longest_wait=LONGEST_WAIT,
                on_loss=lambda error: self._lost(signing, error),
            )
            opened.push_async_callback(self._close, lanes.close)
            watch = asyncio.create_task(self._watch(lanes))
            opened.callback(watch.cancel)
            live = Live(lanes)
            self._at_work = (live, lanes)
            reader = KeyringReader(Path(self._configuration.keyring))
            while True:
                trouble = await self._follow(reader, live)
                if reader.epoch >= 0 and not signing.is_open and not self._status.done():
                    _settle()
                    signing.opened(live, lanes)
                    await listener.set_serving(True)
                    log.info("serving", epoch=live.epoch, profiles=len(live))
                self._speak(presence, live if signing.is_open else None, trouble)
                await asyncio.sleep(FOLLOW_EVERY)

    async def _close(self, close: Callable[[], bool | None]) -> None:
        """Lanes, then the HSM; neither when it was lost or hangs: their process ends instead."""
        lost = self._status.done() and self._status.result() == HSM_LOST
        self.is_stuck = self.is_stuck or lost or await asyncio.to_thread(close) is False

    async def _watch(self, lanes: Lanes) -> None:
        """Looks for ever whether the HSM answers."""
        while True:
            lanes.watch(time.monotonic())
            await asyncio.sleep(WATCH_EVERY)

    async def _open(self, presence: Presence, signing: Signing) -> Hsm:
        """Waits for an HSM that lets us in; a PIN is tried once until it is another one."""
        while True:
            try:
                return await asyncio.to_thread(open_hsm, self._configuration.hsm, self._run)
            except (Unavailable, Misconfigured) as error:
                if signing.closed(error):
                    log.error("hsm_not_usable", reason=error.reason, message=str(error))
                self._speak(presence, trouble=str(error))
                await asyncio.sleep(1.0)

    async def _follow(self, reader: KeyringReader, live: Live) -> str:
        """Takes over what is new in the keyring; gives what is wrong, or an empty text."""
        try:
            news = reader.follow()
            if news:
                await live.follow(news)
                log.info("keyring", epoch=live.epoch, profiles=len(live))
                for profile, error in live.trouble.items():
                    log.error("key_not_usable", profile=profile, reason=error.reason)
            elif live.trouble and time.monotonic() >= self._look_again:
                await live.look_again()
                self._look_again = time.monotonic() + LOOK_AGAIN_EVERY
        except KmsdError as error:
            return str(error)
        return "; ".join(f"{name}: {why}" for name, why in islice(live.trouble.items(), 3))

    def _speak(self, presence: Presence, live: Live | None = None, trouble: str = "") -> None:
        """Says what is news. live: None when this signer does not serve."""
        epoch, profiles, unusable = NOT_SERVING, 0, tuple[str, ...]()
        if live is not None:
            epoch, profiles, unusable = live.epoch, len(live), tuple(live.trouble)
        said = Acknowledgement(
            index=self._index,
            pid=os.getpid(),
            epoch=epoch,
            at=self._said.at if self._said else 0,
            started_at=self._started,
            profiles=profiles,
            trouble=trouble[:200],
            unusable=unusable if len(unusable) <= MOST_NAMED else TOO_MANY,
        )
        if said != self._said:
            self._said = replace(said, at=int(time.time()))
            presence.acknowledge(self._said)

    async def _publish(self, signing: Signing) -> None:
        """Writes the metrics for ever; signing goes on when they cannot be written."""
        file = MetricsFile(self._run, self._index)
        trouble = ""
        try:
            while True:
                told, trouble = trouble, ""
                try:
                    await asyncio.to_thread(
                        file.write, self._state(signing), signing.counters.totals()
                    )
                except Exception as error:  # whatever it is
                    trouble = repr(error)
                if trouble and trouble != told:
                    log.error("metrics_not_written", error=trouble)
                await asyncio.sleep(METRICS_EVERY)
        finally:
            file.remove()

    def _state(self, signing: Signing) -> State:
        facts = State(
            serving=signing.is_open,
            started_at=self._started,
            epoch=NOT_SERVING,
            cpu_seconds=time.process_time(),
        )
        if self._at_work is None:
            return facts
        live, lanes = self._at_work
        return replace(
            facts,
            epoch=live.epoch if signing.is_open else NOT_SERVING,
            profiles=len(live),
            unusable=len(live.trouble),
            waiting=lanes.waiting,
            hsm_seconds=lanes.pace(),
        )

    def _lost(self, signing: Signing, error: KmsdError) -> None:
        log.error("hsm_lost", reason=error.reason, message=str(error))
        signing.closed(error)
        self.stop(HSM_LOST)


def _settle() -> None:
    """Takes what there is, keys of ten thousand profiles and all, out of the garbage collector's
    sight, and lets it look less often. A look at everything holds up each call of that moment, and
    looks cost a unary call a seventh of its CPU time (measured)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
