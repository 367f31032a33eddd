"""gRPC servers of kmsd: addresses, mutual TLS, health and reflection.

What the signer's and the keeper's servers have in common; neither of their services is here.
"""

from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kmsd.config import secret
from kmsd.errors import Misconfigured
from kmsd.settings import Tls

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LARGEST_MESSAGE = 1 << 20
"""Bytes of one request; a frame of 256 PASSporTs is about 50 KiB."""


class Listener:
    """A gRPC server with the standard services. Bind it, add services, start it.

    services: full names, for reflection and health.
    """

    def __init__(self, services: Sequence[str], *, share_port: bool) -> None:
        self.server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", int(share_port)),
                ("grpc.max_receive_message_length", LARGEST_MESSAGE),
                ("grpc.max_connection_age_ms", 600_000),  # clients spread over new signers
                ("grpc.max_connection_age_grace_ms", 30_000),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.max_concurrent_streams", 1000),
            ]
        )
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


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Mutual TLS: clients without a certificate of `tls.ca` do not get in."""
    return grpc.ssl_server_credentials(
        [(secret(tls.key, "tls.key").encode(), Path(tls.certificate).read_bytes())],
        root_certificates=Path(tls.ca).read_bytes(),
        require_client_auth=True,
    )
