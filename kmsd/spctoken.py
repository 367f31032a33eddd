"""SPC tokens: reading what the STI-PA answers, and checking a token before it is used.

An SPC token is the authority token of RFC 9447 for TNAuthList identifiers (RFC 9448 section 5):
the STI-PA says that an account key, named by its fingerprint, may have certificates for an SPC.
Not here: asking for one (`authority`), and the STI-CA's own checks of it.
"""

from typing import Any

import msgspec

from kmsd import tnauthlist
from kmsd.errors import Invalid
from kmsd.trust import Broken, Certificates, Jws, Seconds, payload, read_jws, refusing

TKTYPE = "TNAuthList"
"""The one spelling of RFC 9448 section 5.4; RFC 9447's own example has another."""
LIMIT = 16_384
"""Characters of an SPC token, at most."""


class SpcToken(msgspec.Struct, frozen=True):
    """A checked token, ready for one order. Whoever has it and the account key can enroll.

    expires: seconds UTC.
    """

    jwt: str
    expires: int

    def __repr__(self) -> str:
        return f"SpcToken(jwt=<redacted>, expires={self.expires})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("expires", self.expires)]


class Answer(msgspec.Struct, frozen=True):
    """The STI-PA's answer to a token request (PROTOCOL 2.2); `status` is absent in RFC 9448's.

    crl: where the STI-PA says that its CRL is.
    """

    token: str = ""
    status: str = ""
    crl: str = ""

    def __repr__(self) -> str:
        return f"Answer(token=<redacted>, status={self.status!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("status", self.status)]


class Wanted(msgspec.Struct, frozen=True):
    """What a token was asked for.

    tkvalue: the TNAuthList as text, in either base64. fingerprint: `SHA256 AB:CD:...` of the
    ACME account key. seconds: life that must be left.
    """

    tkvalue: str
    fingerprint: str
    seconds: int


def read_answer(text: str) -> Answer | None:
    """What the STI-PA answered, or a file holds: its JSON object or a bare JWT. None: neither."""
    text = text.strip()
    if not text.startswith("{"):
        return Answer(token=text) if text.count(".") == 2 else None
    try:
        return msgspec.json.decode(text, type=Answer)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def read(jwt: str, next_step: str = "") -> Jws:
    """The token's parts, and the x5u to fetch the signer's chain from.

    Raises PeerRefused (SPC_TOKEN_REJECTED; rule size, segments, header, alg, typ or x5u).
    """
    with refusing("SPC_TOKEN_REJECTED", "The SPC token is not usable", next_step):
        signed = read_jws(jwt, LIMIT)
        if signed.typ.upper() != "JWT":
            raise Broken("typ", f"its typ is {signed.typ!r}, and must be 'JWT'.")
        return signed


def check(
    token: Jws,
    chain: Certificates,
    roots: Certificates,
    wanted: Wanted,
    now: int,
    next_step: str = "",
) -> int:
    """When the token expires, if it is the STI-PA's and is for what was asked.

    chain: what the token's x5u served; roots: the pinned STI-PA roots.
    Raises PeerRefused (SPC_TOKEN_REJECTED; rule chain, signature, claims, tktype, tkvalue,
    fingerprint, ca, exp or jti).
    """
    with refusing("SPC_TOKEN_REJECTED", "The SPC token is not usable", next_step):
        claims = _claims(payload(token, chain, roots, now))
        _check_scope(claims.atc, wanted)
        if claims.atc.ca:
            raise Broken("ca", "it is for a CA certificate, and an end-entity one was asked for.")
        if not claims.jti:
            raise Broken("jti", "it has no jti (RFC 9447 section 4).")
        left = claims.exp - now
        if left < wanted.seconds:
            state = f"expires in {left}" if left > 0 else f"expired {-left}"
            word = "seconds" if left > 0 else "seconds ago"
            raise Broken("exp", f"it {state} {word}, and {wanted.seconds} are needed.")
    return claims.exp


class _Atc(msgspec.Struct, frozen=True):
    tktype: str
    tkvalue: str
    fingerprint: str
    ca: bool = False


class _Claims(msgspec.Struct, frozen=True):
    exp: Seconds
    atc: _Atc
    jti: str = ""


def _claims(octets: bytes) -> _Claims:
    try:
        return msgspec.json.decode(octets, type=_Claims)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Broken("claims", f"its claims are not those of an SPC token ({error}).") from None


def _check_scope(atc: _Atc, wanted: Wanted) -> None:
    if atc.tktype != TKTYPE:
        other = atc.tktype.lower() == TKTYPE.lower()
        hint = " The spelling in RFC 9447's example is a mistake." if other else ""
        raise Broken("tktype", f"its tktype is {atc.tktype!r}, and must be {TKTYPE!r}.{hint}")
    try:
        same = tnauthlist.from_text(atc.tkvalue) == tnauthlist.from_text(wanted.tkvalue)
    except Invalid as error:
        raise Broken("tkvalue", f"its tkvalue is not a TNAuthList ({error.message})") from None
    if not same:
        raise Broken("tkvalue", f"it is for {atc.tkvalue!r}, and {wanted.tkvalue!r} was asked for.")
    if atc.fingerprint != wanted.fingerprint:
        raise Broken(
            "fingerprint",
            f"it is for the account key {atc.fingerprint!r}, and ours is {wanted.fingerprint!r}.",
        )
