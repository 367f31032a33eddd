"""Connections to signers: which one gets a request, and what happens when it does not answer.

One gRPC channel for each target. A request goes to the ready connection with the fewest
requests outstanding; when a signer is unavailable it goes to the next one, inside the same
deadline. A refusal is an answer and is never tried again.

This is the seam at which several connections to one target, and frames made of many callers'
requests over `SignStream`, take the place of one unary call each: nothing above knows.
"""

import asyncio
import os
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeAlias, TypeVar

import grpc
from kmsapi.v1 import signing_pb2 as pb
from kmsapi.v1.signing_pb2_grpc import SigningStub

from kmsd_client.errors import DeadlineExceeded, SigningError, Unavailable
from kmsd_client.refusals import error_of_call, is_from_signer
from kmsd_client.tls import Tls, channel_credentials

READY: Final = grpc.ChannelConnectivity.READY

WatchCall: TypeAlias = grpc.aio.UnaryStreamCall[pb.WatchCredentialsRequest, pb.CredentialEvent]

HealthCall: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    # Every address a name has is used, and each reconnects by itself when it is lost.
    ("grpc.lb_policy_name", "round_robin"),
    # gRPC waits up to two minutes before it tries a lost signer again; a restart takes one second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # in truth: how long one attempt may take
    # A peer that is gone without a word: unanswered data shows after 5 s (TCP_USER_TIMEOUT),
    # silence after 5 minutes, which is the most often a server allows by default.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A signer is on our own network: what the environment says of proxies is not about it.
    ("grpc.enable_http_proxy", 0),
    # A TCP connection of its own for each channel, not one that all clients of a process share.
    ("grpc.use_local_subchannel_pool", 1),
)

_HEALTH_METHOD: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse{status: SERVING}, grpc/health/v1/health.proto

_T = TypeVar("_T")


class Connection:
    """A channel to one target, and how much it has to do."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None, name: str) -> None:
        options = [*OPTIONS, *([("grpc.ssl_target_name_override", name)] if name else [])]
        self.target = target
        self.outstanding = 0
        self.turn = 0
        self.channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self.stub = SigningStub(self.channel)
        self._health: HealthCall = self.channel.unary_unary(_HEALTH_METHOD)

    def is_ready(self) -> bool:
        """Whether a request would leave at once. One that is idle starts to connect."""
        return self.channel.get_state(try_to_connect=True) is READY

    async def becomes_ready(self) -> bool:
        """Waits until the connection stands (True) or an attempt failed (False)."""
        while True:
            state = self.channel.get_state(try_to_connect=True)
            match state:
                case grpc.ChannelConnectivity.READY:
                    return True
                case grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return False
            await self.channel.wait_for_state_change(state)

    async def is_serving(self, request: bytes, within: float) -> bool:
        try:
            answer = await self._health(request, timeout=within)
        except grpc.aio.AioRpcError:
            return False
        return answer == _SERVING


class Connections:
    """All targets of one client, in one event loop. Nothing is connected until it is needed.

    Made inside a running event loop; raises OSError or ValueError for unusable TLS files.
    """

    def __init__(self, targets: Sequence[str], tls: Tls | None) -> None:
        credentials = None if tls is None else channel_credentials(tls)
        name = "" if tls is None else tls.server_name
        self._connections = [Connection(target, credentials, name) for target in targets]
        self._turns = 0
        self._requests = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._pid, self._loop = os.getpid(), asyncio.get_running_loop()
        self._watches: set[WatchCall] = set()
        self.closed = asyncio.Event()

    async def sign(self, request: pb.SignRequest, within: float) -> pb.SignResponse:
        """One frame to one signer, to another one when that is unavailable.

        A target whose connection broke is tried once more after the others, since it may lead
        to a signer that was just restarted; a target whose signer itself said UNAVAILABLE is not.
        within: seconds for all of it. Raises the SigningError of the last attempt.
        """
        self._check_home()
        deadline = self._loop.time() + within
        candidates, error = list(self._connections), _too_late(within)
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
                connection = await self._choose(list(self._connections), within)
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
        asked = {c: c.is_serving(request, within) for c in self._connections}
        return await _first_true(asked, within) is not None

    async def close(self, grace: float) -> None:
        """Ends watches, lets requests under way finish for `grace` seconds, then disconnects."""
        self.closed.set()
        for call in list(self._watches):
            call.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), grace)
        await asyncio.gather(*(c.channel.close() for c in self._connections))

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
        if self._pid != os.getpid() or self._loop is not asyncio.get_running_loop():
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
