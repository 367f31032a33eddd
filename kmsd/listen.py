"""gRPC servers of kmsd: addresses, mutual TLS, health, reflection, and what an error becomes.

What the signer's and the keeper's servers have in common; neither of their services is here.
"""

import inspect
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kmsd.answers import abort
from kmsd.config import secret
from kmsd.errors import Invalid, KmsdError, Misconfigured
from kmsd.settings import Tls

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LARGEST_MESSAGE = 1 << 20
"""Bytes of one request; a frame of 256 PASSporTs is about 50 KiB."""
MOST_CONNECTIONS = 8192
KEPT_DESCRIPTORS = 128
"""For everything that is no connection."""

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for type checkers alone
log = structlog.get_logger()


class Listener:
    """A gRPC server with the standard services. Bind it, add services, start it.

    services: full names, for reflection and health. share_port: one of several processes on the
    same address; connections are then ended after a while, so that clients spread anew.
    """

    def __init__(self, services: Sequence[str], *, share_port: bool) -> None:
        options: list[tuple[str, Any]] = [
            ("grpc.so_reuseport", int(share_port)),
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.max_concurrent_streams", 1000),
            # Otherwise gRPC guesses what the way from the client holds, and takes in megabytes of
            # each stream that nobody reads yet.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.max_allowed_incoming_connections", most_connections()),
        ]
        if share_port:
            options += [
                ("grpc.max_connection_age_ms", 600_000),  # gRPC adds a jitter of a tenth
                ("grpc.max_connection_age_grace_ms", 30_000),
            ]
        self.server = grpc.aio.server(options=options, interceptors=[Answering()])
        self._services = services
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)

    async def set_serving(self, serving: bool) -> None:
        """What the health service says, for the server ("") and each service."""
        for service in ("", *self._services):
            await self._health.set(service, SERVING if serving else NOT_SERVING)

    def bind(self, address: str, tls: Tls | None) -> int:
        """Listens on `unix:PATH` or `host:port`; gives the port. Raises Misconfigured."""
        try:
            if tls is None:
                return self.server.add_insecure_port(address)
            return self.server.add_secure_port(address, server_credentials(tls))
        except RuntimeError as error:
            raise Misconfigured(
                "ADDRESS_NOT_BOUND",
                f"Cannot listen on {address}.",
                next_step="Is the address free, and may this user use it?",
                address=address,
            ) from error


def most_connections() -> int:
    """To one address. What is beyond is closed at once: a client that takes all descriptors of
    the process would take those of its HSM and its keyring, too.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(1, min(MOST_CONNECTIONS, descriptors - KEPT_DESCRIPTORS))


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Mutual TLS: clients without a certificate of `tls.ca` do not get in. Raises Misconfigured."""
    return grpc.ssl_server_credentials(
        [(secret(tls.key, "tls.key").encode(), _pem(tls.certificate, "tls.certificate"))],
        root_certificates=_pem(tls.ca, "tls.ca"),
        require_client_auth=True,
    )


class Answering(grpc.aio.ServerInterceptor):
    """Lets services raise: a KmsdError ends the call as `answers` says.

    Anything else is a defect: it is logged, and the caller learns no more than INTERNAL (gRPC
    itself would send the exception's text).
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of a call, wrapped; the same for every call of a method."""
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:  # there is no such method: names of strangers are not kept
                return cast(Handler, None)
            self._handlers[method] = _answering(handler, method)
        return self._handlers[method]


def _answering(handler: Handler, method: str) -> Handler:
    deserializer = _checked(handler.request_deserializer, raises=bool(handler.request_streaming))
    shape = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    behaviour = getattr(handler, shape)
    wrapped: Any
    if inspect.isasyncgenfunction(behaviour):

        @wraps(behaviour)
        async def wrapped(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                if isinstance(request, Invalid):
                    raise request
                async with aclosing(behaviour(request, context)) as messages:
                    async for message in messages:
                        yield message
            except Exception as error:
                await _end(context, method, error)

    else:

        @wraps(behaviour)
        async def wrapped(request: Any, context: Context) -> Any:
            try:
                if isinstance(request, Invalid):
                    raise request
                return await behaviour(request, context)
            except Exception as error:
                await _end(context, method, error)

    make = getattr(grpc, f"{shape}_rpc_method_handler")
    made: Handler = make(wrapped, deserializer, handler.response_serializer)
    return made


def _checked(
    deserializer: Callable[[bytes], Any] | None, *, raises: bool
) -> Callable[[bytes], Any]:
    """The deserializer, with what is no message as Invalid (REQUEST_MALFORMED).

    raises: or gives it. gRPC deserializes the messages of a stream where the handler reads them,
    so that it can catch it, but that of a unary call before the handler is called.
    """

    def deserialize(message: bytes) -> Any:
        try:
            return deserializer(message) if deserializer else message
        except DecodeError:
            malformed = Invalid("REQUEST_MALFORMED", "That is no message of this method.")
            if raises:
                raise malformed from None
            return malformed

    return deserialize


async def _end(context: Context, method: str, error: Exception) -> None:
    match error:
        case grpc.aio.AbortError():  # the call has ended already
            raise error
        case KmsdError():
            await abort(context, error)
        case _:
            log.error("defect", method=method, exc_info=error)
            await context.abort(grpc.StatusCode.INTERNAL, "A defect of kmsd; its log says more.")


def _pem(path: str, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Misconfigured(
            "TLS_FILE_UNREADABLE",
            f"{name}: the file {path} cannot be read ({error.strerror}).",
            next_step="`kmsd check` looks at all TLS files.",
        ) from error
