"""The listener over real mutual TLS: who gets in, who they are, and what errors become."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kmsd.errors import Misconfigured, Precondition
from kmsd.listen import Listener
from kmsd.settings import Tls
from kmsd.signing import Context, identities

NAME = "kmsapi.v1.Admin"
SECRET = "pin=1234"


class Authority:
    """A CA that signs whatever it is asked to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.pem = self._sign("ca", self.key, None)
        self.ca = self._write("ca.pem", self.pem)

    def issue(self, name: str, *names: x509.GeneralName) -> tuple[bytes, bytes]:
        """Key and certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return pem, self._sign(name, key, names)

    def server(self) -> Tls:
        key, certificate = self.issue("server", x509.DNSName("localhost"))
        return Tls(
            certificate=self._write("server.pem", certificate),
            key=self._write("server.key", key),
            ca=self.ca,
        )

    def _write(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return str(path)

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        names: tuple[x509.GeneralName, ...] | None,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(names is None, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


class Service:
    """Says who called; goes wrong in every way."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def who(self, request: Empty, context: Context) -> bytes:
        return "\n".join(identities(context)).encode()

    async def refuse(self, request: Empty, context: Context) -> bytes:
        raise Precondition("NOT_NOW", "Not now.", next_step="Later.", why="test")

    async def defect(self, request: Empty, context: Context) -> bytes:
        raise KeyError(SECRET)

    async def refuse_late(self, request: Empty, context: Context) -> AsyncIterator[bytes]:
        yield b"one"
        raise Precondition("NOT_NOW", "Not now.")

    async def defect_late(self, request: Empty, context: Context) -> AsyncIterator[bytes]:
        yield b"one"
        raise KeyError(SECRET)

    async def endless(self, request: Empty, context: Context) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"one"
                await asyncio.sleep(0.01)
        finally:
            self.closed.set()


def add(listener: Listener, service: Service) -> None:
    unary: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(getattr(service, name))
        for name in ("who", "refuse", "defect")
    }
    streams: dict[str, Any] = {
        name: grpc.unary_stream_rpc_method_handler(getattr(service, name))
        for name in ("refuse_late", "defect_late", "endless")
    }
    handler = grpc.method_handlers_generic_handler(NAME, unary | streams)
    listener.server.add_generic_rpc_handlers((handler,))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def port(authority: Authority, service: Service) -> AsyncIterator[int]:
    listener = Listener([NAME], share_port=True)
    add(listener, service)
    number = listener.bind("127.0.0.1:0", authority.server())
    await listener.server.start()
    yield number
    await listener.server.stop(0)


def channel(authority: Authority, port: int, *names: x509.GeneralName) -> grpc.aio.Channel:
    key, certificate = authority.issue("as1", *names)
    return grpc.aio.secure_channel(
        f"localhost:{port}",
        grpc.ssl_channel_credentials(authority.pem, key, certificate),
    )


@pytest.fixture
async def caller(authority: Authority, port: int) -> AsyncIterator[grpc.aio.Channel]:
    async with channel(authority, port) as opened:
        yield opened


def call(channel: Any, method: str) -> Any:
    """A call of the test service, whatever its shape."""
    streams = method in ("refuse_late", "defect_late", "endless")
    kind = channel.unary_stream if streams else channel.unary_unary
    return kind(f"/{NAME}/{method}")(b"", timeout=10)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """What a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (all_of(call) if hasattr(call, "__aiter__") else call)
    return caught.value


async def all_of(call: Any) -> list[bytes]:
    return [message async for message in call]


def reason_of(error: grpc.aio.AioRpcError) -> str:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = ErrorInfo()
    assert Status.FromString(details).details[0].Unpack(info)
    reason: str = info.reason
    return reason


async def test_a_name_is_an_identity_of_its_own_kind_only(authority: Authority, port: int) -> None:
    """A CA that lets its subscribers choose DNS names does not let them choose who they are."""
    names = (
        x509.DNSName("as1.example.org"),
        x509.DNSName("spiffe://lab/as2"),
        x509.DNSName("CN=admin"),
        x509.DNSName("unix"),
        x509.DNSName("plaintext"),
        x509.RFC822Name("as3.example.org@x"),
        x509.UniformResourceIdentifier("spiffe://lab/as1"),
        x509.UniformResourceIdentifier("as4.example.org"),
    )
    async with channel(authority, port, *names) as opened:
        said: bytes = await call(opened, "who")
    assert said.decode().split("\n") == ["spiffe://lab/as1", "as1.example.org", "CN=as1"]


async def test_a_certificate_of_another_authority_does_not_get_in(
    authority: Authority, port: int, tmp_path: Path
) -> None:
    key, certificate = Authority(tmp_path).issue("as1")
    credentials = grpc.ssl_channel_credentials(authority.pem, key, certificate)
    for one in (credentials, grpc.ssl_channel_credentials(authority.pem)):
        async with grpc.aio.secure_channel(f"localhost:{port}", one) as opened:
            error = await failure(call(opened, "who"))
            assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_without_tls_nobody_gets_in(port: int) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{port}") as opened:
        error = await failure(call(opened, "who"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("method", ["refuse", "refuse_late"])
async def test_what_a_service_raises_is_the_calls_status(
    caller: grpc.aio.Channel, method: str
) -> None:
    error = await failure(call(caller, method))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (error.details() or "").startswith("Not now.")
    assert reason_of(error) == "NOT_NOW"


@pytest.mark.parametrize("method", ["defect", "defect_late"])
async def test_a_defect_is_logged_and_shows_the_caller_nothing(
    caller: grpc.aio.Channel, method: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        error = await failure(call(caller, method))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in str(error)
    assert [(entry["event"], entry["method"]) for entry in logs] == [
        ("defect", f"/{NAME}/{method}")
    ]


async def test_a_caller_who_goes_ends_the_stream(
    caller: grpc.aio.Channel, service: Service
) -> None:
    endless = call(caller, "endless")
    assert await endless.read() == b"one"
    endless.cancel()
    async with asyncio.timeout(10):
        await service.closed.wait()


async def test_a_method_there_is_not_is_said_to_be_none(caller: grpc.aio.Channel) -> None:
    for _ in range(2):
        error = await failure(call(caller, "nothing"))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_standard_services_answer(caller: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(caller)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status
    watch.cancel()


async def test_a_unix_socket_has_an_identity_of_its_own(service: Service, tmp_path: Path) -> None:
    listener = Listener([NAME], share_port=False)
    add(listener, service)
    listener.bind(f"unix:{tmp_path}/s", None)
    await listener.server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as opened:
        assert await call(opened, "who") == b"unix"
    await listener.server.stop(0)


async def test_an_address_in_use_is_the_operators_to_correct(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    listener = Listener([NAME], share_port=False)
    with pytest.raises(Misconfigured) as refused:
        listener.bind(f"unix:{tmp_path}/taken", None)
    assert refused.value.reason == "ADDRESS_NOT_BOUND"
    await listener.server.stop(0)


@pytest.mark.parametrize("name", ["certificate", "ca"])
async def test_a_tls_file_that_is_not_there_is_named(authority: Authority, name: str) -> None:

    tls = msgspec.structs.replace(authority.server(), **{name: "/nowhere/x.pem"})
    listener = Listener([NAME], share_port=False)
    with pytest.raises(Misconfigured, match=f"tls.{name}: the file /nowhere/x.pem") as refused:
        listener.bind("127.0.0.1:0", tls)
    assert refused.value.reason == "TLS_FILE_UNREADABLE"
    await listener.server.stop(0)
