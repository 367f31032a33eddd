"""PASSporTs: typed claims to canonical signing input to an Identity header value.

RFC 8225 (token), RFC 8588 (shaken), RFC 8946 (div), RFC 8443 (rph), RFC 9795 (rcd), RFC 8224
(Identity header). Not here: keys and signatures (`hsm`), who may have what signed (`access`),
reading a received one (`identity`) and whether it is to be believed (`verification`).

Signing is the hot path, so claims become JSON text directly. That is safe because every value
is checked against a syntax that needs no escape in JSON (rich call data, which does, goes
through `ijson`), and a property test holds the result against json.dumps.
"""

import re
from collections.abc import Callable

import msgspec

from kmsd import ijson
from kmsd.canonical import canonical_dest_tn, canonical_tn, canonical_uri, x5u_url
from kmsd.errors import Invalid
from kmsd.identity import IDENTITY_LIMIT, ParsedIdentity, parse
from kmsd.jose import b64url
from kmsd.rcd import Rcd, rcd_claims

__all__ = [
    "DEST_LIMIT",
    "IDENTITY_LIMIT",
    "Base",
    "Claims",
    "Div",
    "ParsedIdentity",
    "Payload",
    "Rcd",
    "Rph",
    "Shaken",
    "Tn",
    "Uri",
    "canonical_tn",
    "canonical_uri",
    "header_segment",
    "identity",
    "parse",
    "payload",
    "signing_input",
]

DEST_LIMIT = 32
"""Destinations of one PASSporT, numbers and URIs together."""
RPH_LIMIT = 16
"""Resource-Priority values of one PASSporT."""


class Tn(msgspec.Struct, frozen=True):
    """A telephone number, as canonical_tn takes it."""

    number: str


class Uri(msgspec.Struct, frozen=True):
    """A URI, as canonical_uri takes it."""

    uri: str


class Shaken(msgspec.Struct, frozen=True):
    """ppt "shaken". attest: "A", "B" or "C". origid: a UUID; empty: one is made."""

    attest: str
    origid: str = ""


class Base(msgspec.Struct, frozen=True):
    """No ppt."""


class Div(msgspec.Struct, frozen=True):
    """ppt "div". div: the old target, one identity of the received `dest`."""

    div: Tn | Uri


class Rph(msgspec.Struct, frozen=True):
    """ppt "rph". auth: Resource-Priority values such as "ets.0" (RFC 4412), at least one."""

    auth: tuple[str, ...]


class Claims(msgspec.Struct, frozen=True):
    """What one PASSporT is to say. iat: seconds since 1970 UTC; 0: now. At least one dest."""

    orig: Tn | Uri
    dest_tn: tuple[str, ...]
    dest_uri: tuple[str, ...]
    iat: int
    type: Shaken | Base | Div | Rph | Rcd


class Payload(msgspec.Struct, frozen=True):
    """A payload as canonical JSON. origid: as in the claims, or as made (shaken only)."""

    json: bytes
    origid: str = ""

    @property
    def segment(self) -> str:
        """The second segment of the token: `json` in base64url."""
        return b64url(self.json)


def header_segment(ppt: str, x5u: str) -> str:
    """The first segment: the canonical protected header in base64url, the same for each token.

    ppt: shaken, div, rph, rcd, or base for none. Raises Invalid (PPT_INVALID, X5U_INVALID).
    """
    if ppt not in _PPTS:
        raise Invalid("PPT_INVALID", f"There is no PASSporT type {ppt[:32]!r}.", field="ppt")
    header = {"alg": "ES256", "typ": "passport", "x5u": x5u_url(x5u)}
    if ppt != "base":
        header["ppt"] = ppt
    return b64url(ijson.canonical(header))


def payload(claims: Claims, *, now: int, freshness: int, new_origid: Callable[[], str]) -> Payload:
    """The canonical payload of `claims` (RFC 8225 section 9).

    now: seconds since 1970 UTC. freshness: how far iat may be from it; a div, which keeps the
    iat of the original (RFC 8946 section 3), may be older. new_origid makes a UUID.
    Raises Invalid with `field` (TN_INVALID, URI_INVALID, DEST_EMPTY, DEST_TOO_MANY,
    IAT_NOT_FRESH, ATTEST_INVALID, ORIGID_INVALID, RPH_INVALID, RCD_INVALID, URL_INVALID).
    """
    iat = claims.iat or now
    kind = claims.type
    if abs(iat - now) > freshness and not (isinstance(kind, Div) and 0 < iat < now):
        raise _stale(iat, now, freshness)
    dest = _dest(claims.dest_tn, claims.dest_uri)
    orig = _identity(claims.orig, "orig")
    # Class patterns without arguments: msgspec attributes are read five times faster by name.
    match kind:
        case Shaken():
            origid = _checked_origid(kind, new_origid)
            text = (
                f'{{"attest":"{kind.attest}","dest":{dest},"iat":{iat},"orig":{orig},'
                f'"origid":"{origid}"}}'
            )
            return Payload(text.encode(), origid)
        case Base():
            text = f'{{"dest":{dest},"iat":{iat},"orig":{orig}}}'
        case Div():
            div = _identity(kind.div, "div")
            text = f'{{"dest":{dest},"div":{div},"iat":{iat},"orig":{orig}}}'
        case Rph():
            rph = _rph(kind.auth)
            text = f'{{"dest":{dest},"iat":{iat},"orig":{orig},"rph":{{"auth":[{rph}]}}}}'
        case _:
            return Payload(_with_rcd(f'"dest":{dest},"iat":{iat},"orig":{orig}', kind))
    return Payload(text.encode())


def signing_input(header_segment: str, payload_segment: str) -> bytes:
    """What ES256 signs: the first two segments and the dot between them."""
    return f"{header_segment}.{payload_segment}".encode("ascii")


def identity(
    header_segment: str, payload_segment: str, signature: bytes, x5u: str, ppt: str
) -> str:
    """The whole value of a SIP Identity header field (RFC 8224 section 4).

    signature: 64 octets r||s. x5u and ppt: as given to header_segment.
    """
    token = f"{header_segment}.{payload_segment}.{b64url(signature)}"
    if ppt == "base":
        return f"{token};info=<{x5u}>;alg=ES256"
    return f"{token};info=<{x5u}>;alg=ES256;ppt={ppt}"


_PPTS = frozenset({"shaken", "base", "div", "rph", "rcd"})
_ATTESTATIONS = frozenset("ABC")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# RFC 4412 section 3.1: namespace "." r-priority, each a token without a dot.
_R_VALUE = re.compile(r"[A-Za-z0-9!%*_+`'~-]{1,64}\.[A-Za-z0-9!%*_+`'~-]{1,64}")


def _dest(numbers: tuple[str, ...], uris: tuple[str, ...]) -> str:
    if len(numbers) == 1 and not uris:
        return f'{{"tn":["{canonical_dest_tn(numbers[0])}"]}}'
    if not numbers and not uris:
        message = "There is no destination: give at least one number or URI."
        raise Invalid("DEST_EMPTY", message, field="dest")
    if len(numbers) + len(uris) > DEST_LIMIT:
        message = f"There are more than {DEST_LIMIT} destinations."
        raise Invalid("DEST_TOO_MANY", message, field="dest", limit=str(DEST_LIMIT))
    tn = ",".join([f'"{canonical_dest_tn(each)}"' for each in numbers])
    uri = ",".join([f'"{canonical_uri(each, "dest")}"' for each in uris])
    if not uris:
        return f'{{"tn":[{tn}]}}'
    if not numbers:
        return f'{{"uri":[{uri}]}}'
    return f'{{"tn":[{tn}],"uri":[{uri}]}}'


def _identity(value: Tn | Uri, field: str) -> str:
    match value:
        case Uri():
            return f'{{"uri":"{canonical_uri(value.uri, field)}"}}'
        case _ if field == "div":  # it was a dest
            return f'{{"tn":"{canonical_dest_tn(value.number, field)}"}}'
        case _:
            return f'{{"tn":"{canonical_tn(value.number, field)}"}}'


def _checked_origid(shaken: Shaken, new_origid: Callable[[], str]) -> str:
    if shaken.attest not in _ATTESTATIONS:
        message = f"The attestation is A, B or C, not {shaken.attest[:32]!r}."
        raise Invalid("ATTEST_INVALID", message, field="attest")
    if not shaken.origid:
        return new_origid()
    if not _UUID.fullmatch(shaken.origid):
        raise Invalid("ORIGID_INVALID", "The origid is not a UUID (RFC 4122).", field="origid")
    return shaken.origid


def _rph(auth: tuple[str, ...]) -> str:
    if not 0 < len(auth) <= RPH_LIMIT or not all(map(_R_VALUE.fullmatch, auth)):
        raise Invalid(
            "RPH_INVALID",
            f"rph takes 1 to {RPH_LIMIT} Resource-Priority values such as ets.0.",
            field="rph",
        )
    return ",".join([f'"{value}"' for value in auth])


def _with_rcd(members: str, rcd: Rcd) -> bytes:
    claims = rcd_claims(rcd)
    crn = b'"crn":' + ijson.canonical(claims.pop("crn")) + b"," if "crn" in claims else b""
    # rcd and rcdi sort after orig: their object's text but for its opening brace.
    return b"{" + crn + members.encode() + b"," + ijson.canonical(claims)[1:]


def _stale(iat: int, now: int, freshness: int) -> Invalid:
    return Invalid(
        "IAT_NOT_FRESH",
        f"iat is {abs(iat - now)} seconds {'after' if iat > now else 'before'} now;"
        f" at most {freshness} are fresh.",
        next_step="Leave iat at 0, or set the clock.",
        field="iat",
        now=str(now),
    )
