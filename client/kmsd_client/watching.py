"""Following the credentials that profiles sign with, across reconnects.

Each stream of the signer begins with a snapshot. Read against what was told before, a second
snapshot becomes what it means to the reader: what changed meanwhile, and what is gone.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import grpc
from kmsapi.v1 import signing_pb2 as pb

from kmsd_client.answers import (
    ActiveCredential,
    CalledOff,
    ComingCredential,
    CredentialChange,
    Synced,
    Withdrawn,
    change_of,
)
from kmsd_client.connections import Connections
from kmsd_client.errors import Refused
from kmsd_client.refusals import error_of_call

FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 5.0
"""Seconds between attempts to reconnect: doubled each time, with jitter."""


async def watch(
    connections: Connections, profiles: Sequence[str], within: float
) -> AsyncGenerator[CredentialChange, None]:
    """As `AsyncClient.watch`; within: seconds for each attempt to choose a signer.

    Never ends by itself; returns when the client is closed. Raises Refused and Denied.
    """
    request = pb.WatchCredentialsRequest(profiles=profiles)
    told = Told()
    wait = FIRST_WAIT
    while True:
        stream, retry_after = Resync(told), 0.0
        call = await connections.watch(request, within)
        if call is None:
            return
        try:
            async for event in call:
                for change in stream.changes(change_of(event)):
                    if isinstance(change, Synced):
                        wait = FIRST_WAIT
                    yield change
        except grpc.aio.AioRpcError as failed:
            error = error_of_call(failed)
            if isinstance(error, Refused):
                raise error from failed
            retry_after = error.retry_after
            logging.getLogger("kmsd_client").warning(
                "watch interrupted reason=%s wait=%.1f", error.reason, max(wait, retry_after)
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if connections.closed.is_set() and task is not None and not task.cancelling():
                return
            raise
        finally:
            call.cancel()
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads reconnects, hides nothing
        try:
            async with asyncio.timeout(max(wait * jitter, retry_after)):
                await connections.closed.wait()
                return
        except TimeoutError:
            wait = min(2 * wait, LONGEST_WAIT)


class Told:
    """What the reader of a watch knows: of each profile what it signs with, and what is coming."""

    def __init__(self) -> None:
        self.active: dict[str, ActiveCredential | Withdrawn] = {}
        self.coming: dict[str, ComingCredential] = {}


class Resync:
    """Turns what one stream says into what is new to the reader.

    told: what the reader knows, brought up to date here.
    """

    def __init__(self, told: Told) -> None:
        self._told = told
        self._missing = {
            name for name, known in told.active.items() if isinstance(known, ActiveCredential)
        }
        self._unconfirmed = set(told.coming)

    def changes(self, change: CredentialChange | None) -> list[CredentialChange]:
        """What to tell the reader, in order; nothing when it is known already."""
        told = self._told
        match change:
            case ActiveCredential(profile=profile) | Withdrawn(profile=profile):
                self._missing.discard(profile)
                if isinstance(change, ActiveCredential):
                    self._arrived(change)
                if told.active.get(profile) == change:
                    return []
                told.active[profile] = change
                return [change]
            case ComingCredential(profile=profile):
                self._unconfirmed.discard(profile)
                if told.coming.get(profile) == change:
                    return []
                told.coming[profile] = change
                return [change]
            case CalledOff(profile=profile):
                return [change] if told.coming.pop(profile, None) else []
            case Synced(epoch=epoch):
                return [*self._withdrawn(epoch), *self._called_off(epoch), change]
            case None:
                return []

    def _arrived(self, active: ActiveCredential) -> None:
        """What is active is not coming any more."""
        coming = self._told.coming.get(active.profile)
        if coming is not None and coming.credential == active.credential:
            del self._told.coming[active.profile]

    def _withdrawn(self, epoch: int) -> list[Withdrawn]:
        gone = [Withdrawn(profile, epoch) for profile in sorted(self._missing)]
        self._told.active.update({withdrawn.profile: withdrawn for withdrawn in gone})
        self._missing.clear()
        return gone

    def _called_off(self, epoch: int) -> list[CalledOff]:
        off = sorted(self._unconfirmed & self._told.coming.keys())
        for profile in off:
            del self._told.coming[profile]
        self._unconfirmed.clear()
        return [CalledOff(profile, epoch) for profile in off]
