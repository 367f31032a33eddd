"""A software signer over mutual TLS, a client of it, and targets that are of no use."""

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from kmsd_client import AsyncClient, Tls

from tests.contract.client.calls import free_port
from tests.contract.software_signer import SoftwareSigner, served, signer_for
from tests.contract.tls_parts import Parts, make_parts


@pytest.fixture(scope="module")
def parts() -> Parts:
    return make_parts()


@pytest.fixture
def tls(parts: Parts) -> Tls:
    return Tls(parts.ca, parts.caller_certificate, parts.caller_key)


@pytest.fixture
def signer() -> SoftwareSigner:
    return signer_for(["acme", "other"])


@pytest.fixture
async def target(signer: SoftwareSigner, parts: Parts) -> AsyncIterator[str]:
    async with served(signer, parts) as (target, _):
        yield target


@pytest.fixture
async def client(target: str, tls: Tls) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10) as client:
        yield client


@pytest.fixture
def silent() -> Iterator[str]:
    """A target that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """A target where nobody listens."""
    return f"127.0.0.1:{free_port()}"
