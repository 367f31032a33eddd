"""What a client is made with: refused early, and never shown."""

import math
from typing import Any

import pytest
from kmsd_client import AsyncClient, Client, Tls
from kmsd_client.tls import channel_credentials

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_a_client_needs_a_target_and_a_sensible_timeout(kind: Any) -> None:
    for targets in ("", [], ["host:1", ""]):
        with pytest.raises(ValueError, match="at least one signer"):
            kind(targets, tls=None)
    for timeout in (0, -1, math.nan, math.inf, 3601):
        with pytest.raises(ValueError, match="timeout"):
            kind("host:1", tls=None, timeout=timeout)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize("option", ["connections", "frame_items", "queue_items"])
def test_a_limit_is_a_whole_number_and_not_absurd(kind: Any, option: str) -> None:
    for value in (0, -1, 1.5, "4", None, 10**9):
        with pytest.raises(ValueError, match=option):
            kind("host:1", tls=None, **{option: value})
    kind("host:1", tls=None, **{option: 1})


def test_plaintext_is_never_what_somebody_forgot_to_say() -> None:
    with pytest.raises(TypeError, match="tls"):
        AsyncClient("host:1")  # type: ignore[call-arg]


def test_certificate_and_key_come_together() -> None:
    with pytest.raises(ValueError, match="together"):
        Tls(CERTIFICATE, CERTIFICATE)
    with pytest.raises(ValueError, match="together"):
        Tls(CERTIFICATE, key=KEY)


def test_what_is_no_pem_is_named() -> None:
    for tls, part in (
        (Tls(b"", CERTIFICATE, KEY), "ca"),
        (Tls(CERTIFICATE, b"\x30\x82", KEY), "certificate"),
        (Tls(CERTIFICATE, CERTIFICATE, CERTIFICATE), "key"),
        (Tls(CERTIFICATE, CERTIFICATE, KEY.replace(b"PRIVATE", b"ENCRYPTED PRIVATE")), "key"),
    ):
        with pytest.raises(ValueError, match=f"tls {part} "):
            channel_credentials(tls)


def test_a_key_is_never_shown() -> None:
    tls = Tls(CERTIFICATE, CERTIFICATE, KEY, server_name="signer.example")
    for shown in (tls, AsyncClient("host:1", tls=tls), Client("host:1", tls=tls, profile="acme")):
        assert "c2VjcmV0" not in repr(shown)
        assert "AAAA" not in repr(shown)
    assert repr(Client("host:1", tls=tls, profile="acme")) == "Client(['host:1'], profile='acme')"
    assert repr(AsyncClient("host:1", tls=tls)) == "AsyncClient(['host:1'], profile='')"
