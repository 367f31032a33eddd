"""Whether a PASSporT is to be believed: what an STI-VS does with an Identity header.

RFC 8224 section 6.2, RFC 8225, RFC 8588; order and result codes as in PROTOCOL 4.4. Used for the
canary before a credential becomes active, and by `kmsctl verify`. Not here: fetching the chain
(E8: 436 when it is not to be had), and whether orig may use the number at all.
"""

from collections.abc import Mapping, Sequence

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from kmsd import tnauthlist
from kmsd.canonical import canonical_dest_tn, canonical_uri
from kmsd.certs import read_chain
from kmsd.errors import Invalid, Refused
from kmsd.identity import ParsedIdentity, parse
from kmsd.path import CLOCK_SKEW, PATH_RULES, Path, path, scope, validity

FAILED = "TN-Validation-Failed"
"""verstat when the signature or its credential is no good."""
UNKNOWN = "No-TN-Validation"
"""verstat when nothing could be validated."""
PASSED = "TN-Validation-Passed"


class VerificationFailed(Refused):
    """The PASSporT is not to be believed; metadata has the same facts as text.

    sip_code, phrase: for a SIP response or Reason header (RFC 8224 section 6.2.2).
    verstat: as in ATIS-1000082. step: which check failed.
    """

    def __init__(self, step: str, sip_code: int, message: str, verstat: str = UNKNOWN) -> None:
        self.step = step
        self.sip_code = sip_code
        self.phrase = _PHRASES[sip_code]
        self.verstat = verstat
        facts = {"sip_code": str(sip_code), "phrase": self.phrase, "verstat": verstat}
        super().__init__("VERIFICATION_FAILED", message, step=step, **facts)


class Verified(msgspec.Struct, frozen=True):
    """A PASSporT that holds. ppt: "base" for none. attest, origid: "" unless shaken.

    orig: number or URI; dest: all numbers and URIs. iat: seconds since 1970 UTC.
    spc: of the certificate; subject: its name; anchor: the trusted STI-CA's (RFC 4514).
    """

    ppt: str
    attest: str
    origid: str
    orig: str
    dest: tuple[str, ...]
    iat: int
    x5u: str
    spc: str
    subject: str
    anchor: str
    claims: dict[str, object]
    verstat: str = PASSED


def verify(
    identity_value: str,
    chain_pem: str,
    *,
    roots: Sequence[str],
    crl: bytes | None = None,
    now: int,
    freshness: int = 60,
    orig: str = "",
    dest: str = "",
) -> Verified:
    """Checks an Identity header value with the chain its x5u serves.

    chain_pem: PEM, leaf first. roots: PEM certificates in the STI-PA's list; crl: its CRL (DER
    or PEM); both checked before. now: seconds since 1970 UTC; iat may be `freshness` seconds
    from it. orig, dest: number or URI of the call, when it is known; must be in the claims.
    Raises VerificationFailed, Invalid (ROOT_MALFORMED, CRL_MALFORMED; TN_INVALID, URI_INVALID
    for an orig or dest that is none).
    """
    parsed = _parsed(identity_value)
    _check_header(parsed)
    claims = _claims(parsed)
    if abs(now - claims.iat) > freshness:
        raise VerificationFailed(
            "iat", 403, f"iat is {abs(now - claims.iat)} seconds from now, {freshness} are fresh."
        )
    _check_call(claims, orig, dest)
    way = _path(chain_pem, roots, now, crl)
    spc = _credential(way, claims.iat)
    _check_signature(parsed, way)
    if parsed.ppt == "shaken" and claims.attest not in ("A", "B", "C"):
        raise _claim("attest", "attest is not A, B or C")
    return Verified(
        parsed.ppt,
        claims.attest,
        claims.origid,
        _one(claims.orig),
        (*claims.dest.tn, *claims.dest.uri),
        claims.iat,
        parsed.x5u,
        spc,
        way.chain[0].subject.rfc4514_string(),
        way.links[-1].subject.rfc4514_string(),
        parsed.claims,
    )


_PHRASES: Mapping[int, str] = {
    403: "Stale Date",
    436: "Bad Identity Info",
    437: "Unsupported Credential",
    438: "Invalid Identity Header",
}
_CODES: Mapping[str, int] = {"INFO_INVALID": 436, "HEADER_MALFORMED": 436, "INFO_MISMATCH": 436}


class _Orig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tn: str = ""
    uri: str = ""


class _Dest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tn: tuple[str, ...] = ()
    uri: tuple[str, ...] = ()


class _Claims(msgspec.Struct, frozen=True):
    dest: _Dest
    iat: int
    orig: _Orig
    attest: str = ""
    origid: str = ""
    div: _Orig | None = None
    rph: dict[str, object] | None = None
    rcd: dict[str, object] | None = None


def _parsed(identity_value: str) -> ParsedIdentity:
    try:
        return parse(identity_value)
    except Invalid as error:
        code = _CODES.get(error.reason, 438)
        raise VerificationFailed(error.reason.lower(), code, error.message) from error


def _check_header(parsed: ParsedIdentity) -> None:
    if parsed.typ != "passport":
        message = f"typ is {parsed.typ[:32]!r}, not 'passport'."
        raise VerificationFailed("typ", 437, message)
    if parsed.alg != "ES256":
        raise VerificationFailed("alg", 437, f"alg is {parsed.alg[:32]!r}, not 'ES256'.")
    if parsed.ppt not in ("shaken", "base", "div", "rph", "rcd"):
        raise VerificationFailed("ppt", 438, f"ppt {parsed.ppt[:32]!r} is unknown.")


def _claims(parsed: ParsedIdentity) -> _Claims:
    try:
        claims = msgspec.convert(parsed.claims, _Claims)
    except msgspec.ValidationError as error:
        raise _claim("claims", f"its claims are malformed or missing: {error}") from error
    if not (claims.dest.tn or claims.dest.uri):
        raise _claim("dest", "dest names nobody")
    _one(claims.orig)
    match parsed.ppt:
        case "shaken":
            missing = not (claims.attest and claims.origid)
        case "div":
            missing = not (claims.div and _one(claims.div))
        case "rph":
            missing = not claims.rph
        case "rcd":
            missing = not claims.rcd
        case _:
            missing = False
    if missing:
        raise _claim("claims", f"a claim of its type, {parsed.ppt}, is missing")
    return claims


def _one(identity: _Orig) -> str:
    if bool(identity.tn) == bool(identity.uri):
        raise _claim("identity", "orig or div is not exactly one identity")
    return identity.tn or identity.uri


def _check_call(claims: _Claims, orig: str, dest: str) -> None:
    if orig and _canonical(orig) != _one(claims.orig):
        raise _claim("orig", f"it is for calls from {_one(claims.orig)[:64]!r}")
    if dest and _canonical(dest) not in (*claims.dest.tn, *claims.dest.uri):
        raise _claim("dest", "it is for calls to somebody else")


def _canonical(text: str) -> str:
    return canonical_uri(text) if ":" in text else canonical_dest_tn(text)


def _path(chain_pem: str, roots: Sequence[str], now: int, crl: bytes | None) -> Path:
    try:
        chain = read_chain(chain_pem)
    except Invalid as error:
        raise VerificationFailed("chain", 437, error.message, FAILED) from error
    way = path(chain, roots, now=now, crl=crl)
    for name, rule in PATH_RULES:
        if why := rule(way):
            raise VerificationFailed(name, 437, f"The certificate is not good: {why}.", FAILED)
    return way


def _credential(way: Path, iat: int) -> str:
    """The SPC that the leaf is for; a SHAKEN certificate has exactly one."""
    leaf = way.chain[0]
    not_before, not_after = validity(leaf)
    if not not_before - CLOCK_SKEW <= iat <= not_after:
        raise VerificationFailed(
            "valid_at_iat", 437, "The certificate was not valid at iat.", FAILED
        )
    der = scope(leaf)
    if der is None:
        message = "The certificate has no TNAuthList."
        raise VerificationFailed("tnauthlist", 437, message, FAILED)
    try:
        listed = tnauthlist.decode(der)
    except Invalid as error:
        raise VerificationFailed("tnauthlist", 437, error.message, FAILED) from error
    match listed.entries:
        case (tnauthlist.Spc(code),):
            return code
        case _:
            message = "The TNAuthList is not exactly one SPC."
            raise VerificationFailed("tnauthlist", 437, message, FAILED)


def _check_signature(parsed: ParsedIdentity, way: Path) -> None:
    key = way.chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise VerificationFailed("key", 437, "The certified key is not a P-256 key.", FAILED)
    signature = parsed.signature
    if len(signature) != 64:
        message = f"The signature has {len(signature)} octets, and must be 64: r||s, not DER."
        raise VerificationFailed("signature", 438, message, FAILED)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), parsed.signing_input, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        message = "The certified key does not verify the signature."
        raise VerificationFailed("signature", 438, message, FAILED) from error


def _claim(step: str, why: str) -> VerificationFailed:
    return VerificationFailed(step, 438, f"The PASSporT is invalid: {why}.")
