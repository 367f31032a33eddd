"""Who signs a request to an ACME server, and what the signed header says of them.

RFC 8555 section 6.2: ES256, and exactly one of `kid` (an account) and `jwk` (a key).
"""

from dataclasses import dataclass
from typing import Protocol

from kmsd import jose


class Key(Protocol):
    """A P-256 key that signs, wherever it is."""

    @property
    def public_key(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        ...

    async def sign(self, data: bytes) -> bytes:
        """The ES256 signature over `data` (hashed inside): 64 octets r||s."""
        ...


@dataclass(frozen=True, slots=True)
class ByAccount:
    """Signed by the key of the account at `url` (a `kid` in the JWS)."""

    key: Key
    url: str


@dataclass(frozen=True, slots=True)
class ByKey:
    """Signed by a key that introduces itself (a `jwk`); kid: extra member some STI-CAs want."""

    key: Key
    kid: str = ""


Signer = ByAccount | ByKey


def header(signer: Signer, url: str) -> dict[str, object]:
    """The protected header but for the nonce (RFC 8555 section 6.2): jwk or kid, never both."""
    match signer:
        case ByAccount(_, account):
            return {"alg": "ES256", "kid": account, "url": url}
        case ByKey(key, kid):
            extra = {"kid": kid} if kid else {}
            return {"alg": "ES256", "jwk": jose.jwk(key.public_key) | extra, "url": url}
