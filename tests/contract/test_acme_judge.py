"""What the ACME client puts on the wire, judged by a JOSE library that is not ours.

RFC 8555 sections 6.2 (which JWS), 6.3 (POST-as-GET), 7.3.4 (external account binding) and
7.3.5 (keyChange); RFC 7515 for the rest.
"""

import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey, OctKey

from kmsd.acme.client import Acme
from kmsd.settings import Issuer
from tests.pebble import SoftKey

CA = "https://ca.example"
ACCOUNT = f"{CA}/account/1"
MAC_KEY = bytes(range(32))
TNAUTHLIST = bytes.fromhex("3008a006160431323334")
DIRECTORY = {
    name: f"{CA}/{name}"
    for name in ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")
}


class Wire:
    """An STI-CA that takes everything, and keeps each request as it came."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, str]]] = []
        self._nonces = (f"nonce{number}" for number in count())

    async def answer(self, request: httpx.Request) -> httpx.Response:
        headers = {"Replay-Nonce": next(self._nonces)}
        match request.method, request.url.path:
            case "GET", _:
                return replying(DIRECTORY)
            case "HEAD", _:
                return replying({}, headers)
        assert request.headers["content-type"] == "application/jose+json"
        self.posted.append((str(request.url), json.loads(request.content)))
        headers["Location"] = ACCOUNT if "ccount" in request.url.path else f"{CA}/order/1"
        order = {"status": "pending", "finalize": f"{CA}/finalize", "authorizations": []}
        return replying(order | {"status": "valid"}, headers)

    def last(self) -> tuple[str, dict[str, str]]:
        return self.posted[-1]


def replying(body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
    """A reply that can be read from piece by piece, as from a network."""

    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(body).encode()

    return httpx.Response(200, content=pieces(), headers=headers)


@pytest.fixture
def key() -> SoftKey:
    return SoftKey()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def acme(wire: Wire, key: SoftKey) -> AsyncIterator[Acme]:
    issuer = Issuer(directory=f"{CA}/directory", eab_key_id="customer 7")
    http = httpx.MockTransport(wire.answer)
    async with Acme("ca", issuer, key, mac_key=MAC_KEY, http=http) as made:
        yield made


def judged(message: dict[str, str], key: ECKey | OctKey, alg: str = "ES256") -> tuple[Any, bytes]:
    """Protected header and payload, once joserfc has verified the flattened JWS."""
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    compact = f"{message['protected']}.{message['payload']}.{message['signature']}"
    assert set(message) == {"protected", "payload", "signature"}
    found = jws.deserialize_compact(compact, key, registry=registry)
    return found.headers(), found.payload


def public(key: SoftKey) -> ECKey:
    spki = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return ECKey.import_key(spki)


async def test_a_new_account_is_signed_by_the_key_it_shows(
    acme: Acme, wire: Wire, key: SoftKey
) -> None:
    assert await acme.ensure_account() == ACCOUNT
    url, message = wire.last()
    header, payload = judged(message, public(key))
    assert set(header) == {"alg", "jwk", "nonce", "url"}
    assert header["url"] == url == DIRECTORY["newAccount"]
    assert ECKey.import_key(header["jwk"]).thumbprint() == public(key).thumbprint()
    assert set(header["jwk"]) == {"kty", "crv", "x", "y"}

    binding = json.loads(payload)["externalAccountBinding"]
    inner, bound = judged(binding, OctKey.import_key(MAC_KEY), "HS256")
    assert inner == {"alg": "HS256", "kid": "customer 7", "url": url}
    assert json.loads(bound) == header["jwk"]
    with pytest.raises(BadSignatureError):
        judged(binding, OctKey.import_key(MAC_KEY[::-1]), "HS256")


async def test_an_order_is_signed_for_the_account_and_its_url(
    acme: Acme, wire: Wire, key: SoftKey
) -> None:
    order = await acme.new_order(TNAUTHLIST)
    url, message = wire.last()
    header, payload = judged(message, public(key))
    assert header == {"alg": "ES256", "kid": ACCOUNT, "nonce": header["nonce"], "url": url}
    assert json.loads(payload) == {
        "identifiers": [{"type": "TNAuthList", "value": "MAigBhYEMTIzNA"}]
    }

    await acme.order(order.url)
    url, message = wire.last()
    header, payload = judged(message, public(key))
    assert (header["url"], message["payload"], payload) == (order.url, "", b"")
    nonces = [judged(each, public(key))[0]["nonce"] for _, each in wire.posted]
    assert len(set(nonces)) == len(nonces)


async def test_a_key_change_is_signed_by_both_keys(acme: Acme, wire: Wire, key: SoftKey) -> None:
    new_key = SoftKey()
    await acme.roll_key(new_key)
    url, message = wire.last()
    outer, payload = judged(message, public(key))
    assert outer["kid"] == ACCOUNT
    inner, change = judged(json.loads(payload), public(new_key))
    assert set(inner) == {"alg", "jwk", "url"}
    assert inner["url"] == outer["url"] == url
    assert ECKey.import_key(inner["jwk"]).thumbprint() == public(new_key).thumbprint()
    said = json.loads(change)
    assert said["account"] == ACCOUNT
    assert ECKey.import_key(said["oldKey"]).thumbprint() == public(key).thumbprint()


async def test_a_revocation_by_the_certificates_own_key_shows_that_key(
    acme: Acme, wire: Wire
) -> None:
    own = SoftKey()
    await acme.revoke(b"\x30\x00", 1, own)
    header, payload = judged(wire.last()[1], public(own))
    assert set(header) == {"alg", "jwk", "nonce", "url"}
    assert json.loads(payload) == {"certificate": "MAA", "reason": 1}
