"""JWS with ES256 and HS256, JWK and its thumbprint (RFC 7515, 7517, 7518, 7638).

On `cryptography` alone, with raw r||s signatures. Text in, bytes out; decoding is strict:
no padding, no whitespace, nothing that has a second spelling.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

_SIZE = 32  # bytes of a P-256 coordinate
_ES256 = ec.ECDSA(hashes.SHA256())


def encode(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Bytes of base64url without padding. Raises ValueError, also for a non-canonical tail."""
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError("not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data


def decode_object(text: str) -> dict[str, Any]:
    """A JSON object in base64url. Raises ValueError."""
    return parse_object(decode(text))


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object, each member once (RFC 7515 section 4). Raises ValueError."""
    try:
        value = json.loads(data, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def jwk_of(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    return {
        "crv": "P-256",
        "kty": "EC",
        "x": encode(numbers.x.to_bytes(_SIZE, "big")),
        "y": encode(numbers.y.to_bytes(_SIZE, "big")),
    }


def key_of(jwk: object) -> ec.EllipticCurvePublicKey:
    """The P-256 public key of a JWK; further members (`kid`) are let pass. Raises ValueError."""
    if not isinstance(jwk, dict) or jwk.get("kty") != "EC" or jwk.get("crv") != "P-256":
        raise ValueError("the JWK is no EC key on P-256")
    if "d" in jwk:
        raise ValueError("the JWK holds a private key")
    x, y = jwk.get("x"), jwk.get("y")
    if not isinstance(x, str) or not isinstance(y, str):
        raise ValueError("the JWK lacks x or y")
    raw_x, raw_y = decode(x), decode(y)
    if len(raw_x) != _SIZE or len(raw_y) != _SIZE:
        raise ValueError("x and y have 32 bytes each (RFC 7518 section 6.2.1.2)")
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(raw_x, "big"), int.from_bytes(raw_y, "big"), ec.SECP256R1()
    )
    return numbers.public_key()


def thumbprint(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 over the required members in lexical order (RFC 7638), 32 bytes."""
    text = json.dumps(jwk_of(key), separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).digest()


def spki_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 over the DER SubjectPublicKeyInfo, 32 bytes."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).digest()


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ES256: 64 bytes r||s."""
    r, s = decode_dss_signature(key.sign(data, _ES256))
    return r.to_bytes(_SIZE, "big") + s.to_bytes(_SIZE, "big")


def verifies(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether 64 bytes r||s are an ES256 signature over `data`."""
    if len(signature) != 2 * _SIZE:
        return False
    r = int.from_bytes(signature[:_SIZE], "big")
    s = int.from_bytes(signature[_SIZE:], "big")
    try:
        key.verify(encode_dss_signature(r, s), data, _ES256)
    except InvalidSignature:
        return False
    return True


def hmac_verifies(secret: bytes, signature: bytes, data: bytes) -> bool:
    """HS256."""
    return hmac.compare_digest(hmac.new(secret, data, hashlib.sha256).digest(), signature)


def compact(
    key: ec.EllipticCurvePrivateKey, header: dict[str, Any], payload: dict[str, Any]
) -> str:
    """Compact serialization, signed with ES256 whatever the header says."""
    head, body = (encode(json.dumps(part).encode()) for part in (header, payload))
    return f"{head}.{body}.{encode(sign(key, f'{head}.{body}'.encode('ascii')))}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a JSON member appears twice")
    return members
