"""Mutual TLS: who is let in, whom the client trusts."""

import threading
from pathlib import Path

import pytest
from kmsd_client import AsyncClient, Client, Tls, Unavailable

from tests.contract.client.calls import CALL
from tests.contract.tls_parts import Parts, make_parts


async def test_a_caller_without_certificate_gets_nothing(target: str, parts: Parts) -> None:
    async with AsyncClient(target, tls=Tls(parts.ca), timeout=10) as client:
        with pytest.raises(Unavailable):
            await client.sign_shaken(*CALL)


async def test_a_signer_of_another_authority_is_not_trusted(target: str, parts: Parts) -> None:
    other = make_parts()
    tls = Tls(other.ca, parts.caller_certificate, parts.caller_key)
    async with AsyncClient(target, tls=tls, timeout=10) as client:
        with pytest.raises(Unavailable):
            await client.sign_shaken(*CALL)


async def test_credentials_come_from_files_and_the_name_may_be_another(
    target: str, parts: Parts, tmp_path: Path
) -> None:
    for name in ("ca", "caller_certificate", "caller_key"):
        (tmp_path / name).write_bytes(getattr(parts, name))
    files = (tmp_path / "ca", str(tmp_path / "caller_certificate"), tmp_path / "caller_key")
    tls = Tls(*files, server_name="localhost")
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10) as client:
        await client.sign_shaken(*CALL)
    wrong = Tls(*files, server_name="elsewhere.example")
    async with AsyncClient(target, tls=wrong, timeout=10) as client:
        with pytest.raises(Unavailable):
            await client.sign_shaken(*CALL)


async def test_unusable_tls_files_are_told_before_any_call(parts: Parts, tmp_path: Path) -> None:
    swapped = Tls(parts.ca, parts.caller_key, parts.caller_certificate)
    with pytest.raises(ValueError, match="tls key holds no PEM PRIVATE KEY"):
        await AsyncClient("localhost:1", tls=swapped).__aenter__()
    with pytest.raises(FileNotFoundError):
        await AsyncClient("localhost:1", tls=Tls(tmp_path / "none")).__aenter__()
    with pytest.raises(FileNotFoundError):
        Client("localhost:1", tls=Tls(tmp_path / "none")).__enter__()
    assert "kmsd-client" not in [thread.name for thread in threading.enumerate()]
