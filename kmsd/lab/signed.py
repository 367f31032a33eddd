"""Is this POST a request this STI-CA may act on? (RFC 8555 sections 6.2 to 6.5.)

The flattened JWS is taken apart and every rule about it checked: media type, alg, nonce, url,
exactly one of jwk and kid, account, signature. What comes out is what handlers work with.
"""

from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from kmsd.lab import jws
from kmsd.lab.problem import Problem
from kmsd.lab.state import Account
from kmsd.lab.world import World

LARGEST_BODY = 64 * 1024


@dataclass(frozen=True)
class Signed:
    """A request with a good signature.

    account: of `kid`; None when the request carried its key as `jwk`.
    payload: the bytes signed; empty for POST-as-GET (section 6.3).
    """

    url: str
    key: ec.EllipticCurvePublicKey
    account: Account | None
    payload: bytes

    @property
    def as_get(self) -> bool:
        return not self.payload

    def body(self) -> dict[str, Any]:
        """The payload as a JSON object. Raises Problem malformed."""
        try:
            return jws.parse_object(self.payload)
        except ValueError as error:
            raise Problem("malformed", "The payload is no JSON object.") from error

    def by_account(self) -> Account:
        """Whose request it is. Raises Problem when it came with `jwk`."""
        if self.account is None:
            raise Problem("malformed", "This request is signed with kid (RFC 8555 section 6.2).")
        return self.account


def authenticate(world: World, url: str, media_type: str, body: bytes) -> Signed:
    """The request in `body`, which came to `url`. Raises Problem."""
    if media_type.partition(";")[0].strip() != "application/jose+json":
        raise Problem("malformed", "Content-Type is application/jose+json.", status=415)
    if len(body) > LARGEST_BODY:
        raise Problem("malformed", "The request is too large.", status=413)
    outer = _outer(body)
    header = _header(outer["protected"])
    _check_nonce(world, header)
    if header.get("url") != url:
        raise Problem("unauthorized", f"The JWS is for another url than {url}.")
    key, account = _signer(world, header)
    payload, signature = (_decoded(outer[name], name) for name in ("payload", "signature"))
    text = f"{outer['protected']}.{outer['payload']}"
    if not payload and world.switches.empty_payload == "protected_only":
        text = outer["protected"]
    if not jws.verifies(key, signature, text.encode("ascii")):
        raise Problem("malformed", "The JWS's signature does not verify.")
    return Signed(url, key, account, payload)


def _outer(body: bytes) -> dict[str, str]:
    try:
        outer = jws.parse_object(body)
    except ValueError as error:
        raise Problem("malformed", "The body is no JSON object.") from error
    if "signatures" in outer or "header" in outer:
        raise Problem("malformed", "The JWS is flattened, with a protected header only.")
    for name in ("protected", "payload", "signature"):
        if not isinstance(outer.get(name), str):
            raise Problem("malformed", f"The JWS lacks {name}.")
    return outer


def _header(protected: str) -> dict[str, Any]:
    try:
        header = jws.decode_object(protected)
    except ValueError as error:
        raise Problem("malformed", f"The protected header is unreadable: {error}.") from error
    if header.get("alg") != "ES256":
        raise Problem("badSignatureAlgorithm", "alg is ES256 here.", algorithms=["ES256"])
    if "crit" in header or "b64" in header:
        raise Problem("malformed", "Critical headers are not understood.")
    if ("jwk" in header) == ("kid" in header):
        raise Problem("malformed", "The JWS has exactly one of jwk and kid.")
    return header


def _check_nonce(world: World, header: dict[str, Any]) -> None:
    nonce = header.get("nonce")
    if not isinstance(nonce, str):
        raise Problem("malformed", "The JWS has no nonce.")
    good = world.book.spend_nonce(nonce)
    if not good or world.dice.chance(world.switches.bad_nonce_share):
        world.book.bad_nonces += 1
        raise Problem("badNonce", "The nonce is not one of ours, or no longer.")


def _signer(
    world: World, header: dict[str, Any]
) -> tuple[ec.EllipticCurvePublicKey, Account | None]:
    if "jwk" in header:
        try:
            return jws.key_of(header["jwk"]), None
        except ValueError as error:
            raise Problem("badPublicKey", f"The jwk does not do: {error}.") from error
    prefix = f"{world.urls.ca}/account/"
    kid = header["kid"]
    account = None
    if isinstance(kid, str) and kid.startswith(prefix):
        account = world.book.accounts.get(kid.removeprefix(prefix))
    if account is None:
        raise Problem("accountDoesNotExist", "The kid is no account of ours.")
    if not account.active:
        raise Problem("unauthorized", "The account is deactivated.")
    return account.key, account


def _decoded(text: str, name: str) -> bytes:
    try:
        return jws.decode(text)
    except ValueError as error:
        raise Problem("malformed", f"The JWS's {name} is {error}.") from error
