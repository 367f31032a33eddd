"""All connections of one client: what goes over them, and how they end.

Calls of single PASSporTs go through `dispatch`, which makes frames of them. Here is what a
caller made a frame of, as one unary call: it goes to the ready connection with the fewest
requests outstanding, and when that signer is unavailable to the next one, inside the same
deadline. A refusal is an answer and is never tried again. Watching and health are here as well.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeAlias, TypeVar

import grpc
from kmsapi.v1 import signing_pb2 as pb

from kmsd_client.answers import Signed
from kmsd_client.calls import Call
from kmsd_client.connection import Connection
from kmsd_client.dispatch import Dispatch
from kmsd_client.errors import DeadlineExceeded, SigningError, Unavailable
from kmsd_client.refusals import error_of_call, is_from_signer
from kmsd_client.terms import Terms
from kmsd_client.tls import Tls, channel_credentials

WatchCall: TypeAlias = grpc.aio.UnaryStreamCall[pb.WatchCredentialsRequest, pb.CredentialEvent]

_T = TypeVar("_T")


class Connections:
    """Those to all targets of one client, in one event loop. None is made until it is needed.

    Made inside a running event loop; raises OSError or ValueError for unusable TLS files.
    """

    def __init__(self, terms: Terms, tls: Tls | None) -> None:
        credentials = None if tls is None else channel_credentials(tls)
        name = "" if tls is None else tls.server_name
        self._connections = [
            Connection(target, credentials, name, first=not number)
            for target in dict.fromkeys(terms.targets)
            for number in range(terms.connections)
        ]
        self._dispatch = Dispatch(self._connections, terms.frame_items, terms.queue_items)
        self._turns = 0
        self._requests = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._loop = asyncio.get_running_loop()
        self._watches: set[WatchCall] = set()
        self.closed = asyncio.Event()

    def check_room(self) -> None:
        """As `Dispatch.check_room`."""
        self._dispatch.check_room(time.monotonic())

    def sign(self, wire: bytes, profile: str, within: float) -> Coroutine[None, None, Signed]:
        """One PASSporT (`passports.to_wire`), in a frame with others. As `Dispatch.sign`."""
        self._check_home()
        return self._dispatch.sign(wire, profile, within)

    def submit(self, call: Call) -> None:
        """As `Dispatch.submit`."""
        self._check_home()
        self._dispatch.submit(call)

    async def sign_frame(self, request: pb.SignRequest, within: float) -> pb.SignResponse:
        """A caller's own frame to one signer, to another one when that is unavailable.

        A target whose connection broke is tried once more after the others, since it may lead
        to a signer that was just restarted; a target whose signer itself said UNAVAILABLE is not.
        within: seconds for all of it. Raises the SigningError of the last attempt.
        """
        self._check_home()
        deadline = self._loop.time() + within
        candidates, error = self._candidates(), _too_late(within)
        with self._under_way():
            for _ in range(2):
                broken: list[Connection] = []
                while candidates:
                    connection = await self._choose(candidates, deadline - self._loop.time())
                    if (left := deadline - self._loop.time()) <= 0:
                        raise error
                    candidates.remove(connection)
                    try:
                        return await self._sign_at(connection, request, left)
                    except grpc.aio.AioRpcError as failed:
                        error = _typed(failed, within)
                        if not isinstance(error, Unavailable):
                            raise error from failed
                        if not is_from_signer(failed):
                            broken.append(connection)
                candidates = broken
        raise error

    async def watch(self, request: pb.WatchCredentialsRequest, within: float) -> WatchCall | None:
        """Begins to watch at one signer; None when the client is closed meanwhile.

        within: seconds to choose among several; the stream itself has no end.
        """
        self._check_home()
        try:
            with self._under_way():
                connection = await self._choose(self._candidates(), within)
                call = connection.stub.WatchCredentials(request)
        except Unavailable:
            return None
        self._watches.add(call)
        call.add_done_callback(lambda _: self._watches.discard(call))
        return call

    async def healthy(self, service: str, within: float) -> bool:
        """Whether any target's health service says SERVING (grpc.health.v1, encoded by hand)."""
        self._check_home()
        name = service.encode()
        if len(name) > 127:
            raise ValueError("the name of a service has at most 127 bytes")
        request = b"\x0a" + bytes([len(name)]) + name if name else b""
        asked = {c: c.is_serving(request, within) for c in self._candidates()}
        return await _first_true(asked, within) is not None

    async def close(self, grace: float) -> None:
        """Ends watches, lets requests under way finish for `grace` seconds, then disconnects."""
        self.closed.set()
        for call in list(self._watches):
            call.cancel()
        await asyncio.gather(self._frames_end(grace), self._dispatch.close(grace))
        await asyncio.gather(*(c.channel.close() for c in self._connections))

    async def _frames_end(self, grace: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), grace)

    def _candidates(self) -> list[Connection]:
        """One connection to each target, and whatever stands beside it."""
        return [c for c in self._connections if c.first or c.is_ready(connect=False)]

    async def _sign_at(
        self, connection: Connection, request: pb.SignRequest, within: float
    ) -> pb.SignResponse:
        self._turns += 1
        connection.turn = self._turns
        connection.outstanding += 1
        try:
            return await connection.stub.Sign(request, timeout=within)
        finally:
            connection.outstanding -= 1

    async def _choose(self, candidates: list[Connection], within: float) -> Connection:
        """The ready one with the fewest requests outstanding, of equals the longest unused."""
        if len(candidates) == 1:
            return candidates[0]
        ready = [c for c in candidates if c.is_ready()]
        if not ready:
            # One target may swallow packets while the next is fine: the first to stand wins.
            attempts = {c: c.becomes_ready() for c in candidates}
            if (first := await _first_true(attempts, within)) is not None:
                return first
        return min(ready or candidates, key=lambda c: (c.outstanding, c.turn))

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        """What `close` waits for, and what it does to a request that it does not wait for."""
        self._requests += 1
        self._quiet.clear()
        try:
            yield
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # gRPC cancels the call, which looks as if this task had been cancelled.
            task = asyncio.current_task()
            if self.closed.is_set() and task is not None and not task.cancelling():
                raise Unavailable("CLOSED", "The client was closed before the answer.") from None
            raise
        finally:
            self._requests -= 1
            if not self._requests:
                self._quiet.set()

    def _check_home(self) -> None:
        if self.closed.is_set():
            raise RuntimeError("the client is closed")
        # In the child of a fork no loop runs, even where the parent's coroutine goes on.
        if self._loop is not asyncio._get_running_loop():
            raise RuntimeError(
                "a client belongs to the process and the event loop of its first call: "
                "make one in each (after a fork, in the child)"
            )


def _too_late(within: float) -> SigningError:
    return DeadlineExceeded("DEADLINE_EXCEEDED", f"No signer answered within {within:g} s.")


def _typed(failed: grpc.aio.AioRpcError, within: float) -> SigningError:
    error = error_of_call(failed)
    if isinstance(error, DeadlineExceeded) and not is_from_signer(failed):
        return _too_late(within)
    return error


async def _first_true(asked: Mapping[_T, Coroutine[None, None, bool]], within: float) -> _T | None:
    """The key of whatever is first to say True; None when nothing does in time."""
    tasks = {asyncio.ensure_future(question): key for key, question in asked.items()}
    pending: Iterable[asyncio.Task[bool]] = set(tasks)
    deadline = asyncio.get_running_loop().time() + within
    try:
        while pending:
            left = deadline - asyncio.get_running_loop().time()
            done, pending = await asyncio.wait(
                pending, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                return None
            for task in done:
                if task.result():
                    return tasks[task]
        return None
    finally:
        for task in tasks:
            task.cancel()
