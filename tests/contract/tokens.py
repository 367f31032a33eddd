"""Identity header values read and verified from RFC 8224, RFC 8225 and RFC 7515 alone.

Nothing but base64, json and `cryptography`, so that what is signed is not judged by itself.
"""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature


@dataclass(frozen=True)
class Token:
    """An Identity header value, read.

    claims: the payload. x5u: header claim and `info` alike. ppt: "" for a base PASSporT.
    signed: what the signature is over. signature: r and s, 64 bytes.
    """

    claims: dict[str, Any]
    x5u: str
    ppt: str
    signed: bytes
    signature: bytes


def read_identity(identity: str) -> Token:
    """Checks the form: full, canonical, ES256, with parameters that match the token's header."""
    form = r'([\w-]+)\.([\w-]+)\.([\w-]+);info=<([^>]+)>;alg=ES256(?:;ppt="?(\w+)"?)?'
    match = re.fullmatch(form, identity, flags=re.ASCII)
    assert match, "not an Identity header value"
    header, payload, signature, info, ppt = match.groups(default="")
    expected = {"alg": "ES256", "typ": "passport", "x5u": info} | ({"ppt": ppt} if ppt else {})
    assert _canonical(header) == expected
    token = Token(
        _canonical(payload), info, ppt, f"{header}.{payload}".encode(), _unbase64(signature)
    )
    assert isinstance(token.claims["iat"], int)
    assert len(token.signature) == 64
    return token


def verify_signature(token: Token, key: ec.EllipticCurvePublicKey) -> None:
    """Raises InvalidSignature (RFC 7518 section 3.4)."""
    r, s = (int.from_bytes(half, "big") for half in (token.signature[:32], token.signature[32:]))
    key.verify(encode_dss_signature(r, s), token.signed, ec.ECDSA(hashes.SHA256()))


def _canonical(segment: str) -> dict[str, Any]:
    """A segment of a token, which must be canonical JSON (RFC 8225 section 9)."""
    text = _unbase64(segment).decode()
    value: dict[str, Any] = json.loads(text)
    assert text == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return value


def _unbase64(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
