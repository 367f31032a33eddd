"""The STI-CA's checks of an SPC token, in the order of RFC 9448 section 6.

Each rule is one function and refuses with a problem whose member `rule` names it. The last
rule (`ca` against the CSR) needs the CSR and is applied at finalize, in `csr`.
"""

import base64
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from kmsd.lab import jws, tnauth
from kmsd.lab.problem import Problem
from kmsd.lab.switches import Switches
from kmsd.lab.world import pairs

Published = Callable[[str], Sequence[x509.Certificate] | None]


@dataclass(frozen=True)
class Expected:
    """What a token is held against.

    der: the order's TNAuthList. account_key: of the ACME account. root: the STI-PA's.
    published: chain at an STI-PA's URL, or None. now: seconds since the epoch.
    """

    der: bytes
    account_key: ec.EllipticCurvePublicKey
    root: x509.Certificate
    published: Published
    now: float
    used: frozenset[str] | set[str]
    switches: Switches


@dataclass(frozen=True)
class Accepted:
    """What of a token is needed later."""

    jti: str
    ca: bool


@dataclass(frozen=True)
class _Token:
    signing_input: bytes
    signature: bytes
    header: dict[str, Any]
    exp: int
    jti: str
    atc: dict[str, Any]
    times: dict[str, Any]


def check_token(text: object, expected: Expected) -> Accepted:
    """Every rule in turn; raises Problem with the first that is broken."""
    token = _well_formed(text)
    chain = _trusted_issuer(token, expected)
    _signature(token, chain)
    _tktype(token)
    _tkvalue(token, expected)
    _in_time(token, expected)
    _fingerprint(token, expected)
    _used_once(token, expected)
    return Accepted(jti=token.jti, ca=token.atc.get("ca", False))


def _well_formed(text: object) -> _Token:
    if not isinstance(text, str):
        raise _broken("malformed", "well-formed", "the token is no text")
    parts = text.split(".")
    if len(parts) != 3:
        raise _broken("malformed", "well-formed", "the token is no compact JWS")
    try:
        header, payload = jws.decode_object(parts[0]), jws.decode_object(parts[1])
        signature = jws.decode(parts[2])
    except ValueError as error:
        raise _broken("malformed", "well-formed", f"the token is no JWT: {error}") from error
    if header.get("alg") != "ES256":
        raise _broken("malformed", "well-formed", "the token's alg is not ES256")
    if "crit" in header:
        raise _broken("malformed", "well-formed", "the token has critical headers")
    if str(header.get("typ", "")).upper() != "JWT":
        raise _broken("malformed", "well-formed", "the token's typ is not JWT")
    exp, jti, atc = payload.get("exp"), payload.get("jti"), payload.get("atc")
    if not isinstance(exp, int) or isinstance(exp, bool):
        raise _broken("malformed", "well-formed", "the token has no exp in seconds")
    if not isinstance(jti, str) or not jti:
        raise _broken("malformed", "well-formed", "the token has no jti (RFC 9447 section 4)")
    if not isinstance(atc, dict):
        raise _broken("malformed", "well-formed", "the token has no atc")
    texts = ("tktype", "tkvalue", "fingerprint")
    if not all(isinstance(atc.get(name), str) for name in texts):
        raise _broken("malformed", "well-formed", f"atc has the texts {', '.join(texts)}")
    if not isinstance(atc.get("ca", False), bool):
        raise _broken("malformed", "well-formed", "atc.ca is no boolean")
    return _Token(
        f"{parts[0]}.{parts[1]}".encode("ascii"), signature, header, exp, jti, atc, payload
    )


def _trusted_issuer(token: _Token, expected: Expected) -> list[x509.Certificate]:
    """The x5u (or x5c) names a certificate under the STI-PA's root; returns the chain to it."""
    chain = _x5c(token) if "x5c" in token.header else _x5u(token, expected.published)
    moment = datetime.datetime.fromtimestamp(expected.now, datetime.UTC)
    path = [chain[0]]
    while not _issued(path[-1], expected.root):
        above = next((c for c in chain[1:] if c not in path and _issued(path[-1], c)), None)
        if above is None:
            raise _broken("unauthorized", "x5u", "the token's signer is not under the STI-PA root")
        path.append(above)
    for certificate in path:
        if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
            raise _broken("unauthorized", "x5u", "the token signer's certificate is not in time")
    return path


def _x5u(token: _Token, published: Published) -> Sequence[x509.Certificate]:
    x5u = token.header.get("x5u")
    if not isinstance(x5u, str):
        raise _broken("malformed", "x5u", "the token has neither x5u nor x5c")
    if not x5u.startswith("https://"):
        raise _broken("unauthorized", "x5u", "the token's x5u is no https URL")
    chain = published(x5u)
    if not chain:
        raise _broken("unauthorized", "x5u", f"{x5u} is no certificate of a trusted issuer")
    return chain


def _x5c(token: _Token) -> Sequence[x509.Certificate]:
    """Certificates in standard base64 (RFC 7515 section 4.1.6), the signer's first."""
    texts = token.header["x5c"]
    try:
        chain = [x509.load_der_x509_certificate(base64.b64decode(text)) for text in texts]
    except (ValueError, TypeError) as error:
        raise _broken("malformed", "x5c", "the token's x5c holds no certificates") from error
    if not chain:
        raise _broken("malformed", "x5c", "the token's x5c is empty")
    return chain


def _signature(token: _Token, chain: list[x509.Certificate]) -> None:
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not jws.verifies(
        key, token.signature, token.signing_input
    ):
        raise _broken("unauthorized", "signature", "the token's signature does not verify")


def _tktype(token: _Token) -> None:
    if token.atc["tktype"] != "TNAuthList":  # case counts, RFC 9448 section 5.4
        raise _broken(
            "incorrectResponse", "tktype", f"tktype is {token.atc['tktype']!r}, not 'TNAuthList'"
        )


def _tkvalue(token: _Token, expected: Expected) -> None:
    try:
        der = tnauth.read_text(token.atc["tkvalue"], expected.switches.encoding)
    except ValueError as error:
        raise _broken("incorrectResponse", "tkvalue", f"tkvalue: {error}") from error
    if der != expected.der:
        raise _broken("incorrectResponse", "tkvalue", "tkvalue is not the order's identifier")


def _in_time(token: _Token, expected: Expected) -> None:
    if token.exp <= expected.now:
        raise _broken("unauthorized", "exp", "the token has expired")
    for name in ("nbf", "iat"):
        since = token.times.get(name, 0)
        if not isinstance(since, int) or since > expected.now + 60:
            raise _broken("unauthorized", "exp", f"the token's {name} is in the future")


def _fingerprint(token: _Token, expected: Expected) -> None:
    kind, case = expected.switches.fingerprint, expected.switches.fingerprint_case
    digests = {
        "jwk-thumbprint": jws.thumbprint(expected.account_key),
        "spki": jws.spki_digest(expected.account_key),
    }
    good = {
        pairs(digest, upper=upper)
        for name, digest in digests.items()
        for upper in (True, False)
        if kind in (name, "either") and case in ("upper" if upper else "lower", "either")
    }
    if token.atc["fingerprint"] not in good:
        raise _broken(
            "incorrectResponse", "fingerprint", "the fingerprint is not the account key's"
        )


def _used_once(token: _Token, expected: Expected) -> None:
    if token.jti in expected.used:
        raise _broken("unauthorized", "jti", "the token was used before")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return constraints.ca


def _broken(kind: str, rule: str, detail: str) -> Problem:
    return Problem(kind, f"RFC 9448 section 6, {rule}: {detail}.", rule=rule)
