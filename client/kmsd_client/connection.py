"""One gRPC channel to one target, and what is known of it before anything is sent.

Not here: which connection a request goes to (`connections`, `dispatch`).
"""

from typing import Final, TypeAlias

import grpc
from kmsapi.v1 import signing_pb2 as pb
from kmsapi.v1.signing_pb2_grpc import SigningStub

READY: Final = grpc.ChannelConnectivity.READY

StreamCall: TypeAlias = grpc.aio.StreamStreamCall[bytes, pb.SignResponse]

HealthCall: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    # One of a name's addresses, by chance, so that many connections and many clients spread over
    # them; another one when that fails. (round_robin would connect each channel to all of them.)
    (
        "grpc.service_config",
        '{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}',
    ),
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

_STREAM_METHOD: Final = "/kmsapi.v1.Signing/SignStream"
_HEALTH_METHOD: Final = "/grpc.health.v1.Health/Check"
# HealthCheckResponse{status: SERVING} and {status: NOT_SERVING}, grpc/health/v1/health.proto
_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"


class Connection:
    """A channel to one target, and how much it has to do.

    target: the address as the caller gave it. first: the one of its target that is used first.
    outstanding: requests and, of a stream, PASSporTs that wait for an answer. turn: when it was
    last chosen.
    """

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        name: str,
        *,
        first: bool = True,
    ) -> None:
        options = [*OPTIONS, *([("grpc.ssl_target_name_override", name)] if name else [])]
        self.target = target
        self.first = first
        self.outstanding = 0
        self.turn = 0
        self.channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self.stub = SigningStub(self.channel)
        # Frames are put together from encoded requests: see `calls.Frame`.
        self.sign_stream: grpc.aio.StreamStreamMultiCallable[bytes, pb.SignResponse] = (
            self.channel.stream_stream(
                _STREAM_METHOD, response_deserializer=pb.SignResponse.FromString
            )
        )
        self._health: HealthCall = self.channel.unary_unary(_HEALTH_METHOD)

    def is_ready(self, *, connect: bool = True) -> bool:
        """Whether a request would leave at once. connect: one that is idle starts to connect."""
        return self.channel.get_state(try_to_connect=connect) is READY

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
        """What its health service says to a grpc.health.v1.HealthCheckRequest; seconds."""
        try:
            answer = await self._health(request, timeout=within)
        except grpc.aio.AioRpcError:
            return False
        return answer == _SERVING

    async def denies_service(self, within: float) -> bool:
        """Whether its health service says that it does not serve; one that says nothing may."""
        try:
            answer = await self._health(b"", timeout=within)
        except grpc.aio.AioRpcError:
            return False
        return answer == _NOT_SERVING
