"""The signer: one SKS process. Wiring only: HSM login, keyring, gRPC server, acknowledgements.

It signs and does nothing else: no store, no outgoing connection. Crash-only: when the HSM fails
under it, it answers UNAVAILABLE, turns its health to NOT_SERVING and exits to be replaced.
"""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import structlog
from kmsapi.v1 import signing_pb2_grpc

from kmsd.access import Grants
from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.hsm import Hsm
from kmsd.keyring import KeyringReader
from kmsd.lanes import Lanes
from kmsd.listen import Listener
from kmsd.live import Live
from kmsd.login import open_hsm
from kmsd.presence import NOT_SERVING, Acknowledgement, Presence
from kmsd.settings import Configuration
from kmsd.signing import SERVICE, Signing

HSM_LOST = 75
"""Exit status after a lost HSM (EX_TEMPFAIL): the supervisor starts a new process at once."""
FOLLOW_EVERY = 0.05
"""Seconds between two looks at the keyring."""
LANE_CAPACITY = 8192
DRAIN = 5.0

log = structlog.get_logger()


async def run(configuration: Configuration, index: int) -> int:
    """Serves until SIGTERM or SIGINT; gives the process's exit status."""
    process = Process(configuration, index)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop, 0)
    return await process.run()


class Process:
    """One signer from start to end."""

    def __init__(self, configuration: Configuration, index: int) -> None:
        self._configuration = configuration
        self._index = index
        self._run = Path(configuration.run)
        self._started = int(time.time())
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._said: Acknowledgement | None = None

    def stop(self, status: int) -> None:
        """Ends `run` with this exit status; the first word counts."""
        if not self._status.done():
            self._status.set_result(status)

    async def run(self) -> int:
        settings = self._configuration.signer
        with Presence(self._run, self._index) as presence:
            self._speak(presence, NOT_SERVING, 0, "It is starting.")
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
            try:
                ends: set[asyncio.Future[Any]] = {work, self._status}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
                status = self._status.result()
                await listener.set_serving(False)
                await listener.server.stop(DRAIN if status == 0 else 0.2)
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        log.info("stopped", index=self._index, status=status)
        return status

    async def _serve(self, presence: Presence, listener: Listener, signing: Signing) -> None:
        """Opens the HSM when it can be opened, then follows the keyring for ever."""
        hsm = await self._open(presence, signing)
        lanes = Lanes(
            hsm,
            self._configuration.hsm.threads,
            capacity=LANE_CAPACITY,
            on_loss=lambda error: self._lost(signing, error),
        )
        try:
            live = Live(lanes)
            reader = KeyringReader(Path(self._configuration.keyring))
            while True:
                trouble = await self._follow(reader, live)
                if reader.epoch >= 0 and not signing.is_open and not self._status.done():
                    signing.opened(live, lanes)
                    await listener.set_serving(True)
                    log.info("serving", epoch=live.epoch, profiles=len(live))
                epoch = live.epoch if signing.is_open else NOT_SERVING
                self._speak(presence, epoch, len(live), trouble)
                await asyncio.sleep(FOLLOW_EVERY)
        finally:
            await asyncio.to_thread(lanes.close)
            await asyncio.to_thread(hsm.close)

    async def _open(self, presence: Presence, signing: Signing) -> Hsm:
        """Waits for an HSM that lets us in; a PIN is tried once until it is another one."""
        while True:
            try:
                return await asyncio.to_thread(open_hsm, self._configuration.hsm, self._run)
            except (Unavailable, Misconfigured) as error:
                if signing.closed(error):
                    log.error("hsm_not_usable", reason=error.reason, message=str(error))
                self._speak(presence, NOT_SERVING, 0, str(error))
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
        except KmsdError as error:
            return str(error)
        return "; ".join(f"{profile}: {error}" for profile, error in live.trouble.items())

    def _speak(self, presence: Presence, epoch: int, profiles: int, trouble: str) -> None:
        now = int(time.time())
        said = self._said
        if said and (said.epoch, said.profiles, said.trouble) == (epoch, profiles, trouble[:200]):
            return
        self._said = Acknowledgement(
            index=self._index,
            pid=os.getpid(),
            epoch=epoch,
            at=now,
            started_at=self._started,
            profiles=profiles,
            trouble=trouble[:200],
        )
        presence.acknowledge(self._said)

    def _lost(self, signing: Signing, error: KmsdError) -> None:
        log.error("hsm_lost", reason=error.reason, message=str(error))
        signing.closed(error)
        self.stop(HSM_LOST)
