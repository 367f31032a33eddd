"""What an STI-PA signs, checked against its pinned root: JWS, signer chains, the STI-CA list.

Not here: fetching any of it (`authority`), SPC tokens (`spctoken`), the CRL (`crl`), and
whether a certificate of an STI-CA is acceptable. The list is ATIS-1000080's (PROTOCOL 2.5),
signatures are RFC 7515 by joserfc, paths RFC 5280 section 6 by `cryptography`.
"""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from kmsd.errors import Invalid, Misconfigured, PeerRefused
from kmsd.jose import b64url_decode
from kmsd.model import TrustList

Certificates = tuple[x509.Certificate, ...]

Seconds = Annotated[int, msgspec.Meta(le=253_402_300_799)]
"""A moment in seconds since 1970 UTC, until the end of the year 9999: what has a date."""

CHAIN_CERTIFICATES = 10
"""Certificates in one x5u file, at most: more is no chain."""
CHAIN_DEPTH = 4
"""CA certificates between a signer and the end of its path, at most."""


class Broken(Exception):
    """A rule that something signed does not meet. rule: its name; why: one sentence."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule = rule
        self.why = why


class Jws(msgspec.Struct, frozen=True):
    """A compact JWS that is well formed and says ES256; its signature is not checked yet."""

    signed: jws.CompactSignature
    typ: str
    x5u: str


def pinned(pem: str) -> Certificates:
    """The pinned STI-PA root certificates in `pem`. Raises Misconfigured (ROOT_UNREADABLE)."""
    try:
        return certificates(pem.encode())
    except Broken as error:
        raise Misconfigured(
            "ROOT_UNREADABLE",
            f"The pinned STI-PA root holds no certificate that can be read: {error.why}",
            next_step="Put the STI-PA's root certificate into the file named by `root`, as PEM.",
        ) from error


def certificates(data: bytes) -> Certificates:
    """The certificates in a PEM file (any number), a DER one, or a PKCS#7 bundle, in order.

    Raises Broken (certificates).
    """
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            found = x509.load_pem_x509_certificates(data)
        elif b"-----BEGIN PKCS7-----" in data:
            found = pkcs7.load_pem_pkcs7_certificates(data)
        else:
            found = _from_der(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Broken("certificates", f"there is no readable certificate in it ({error}).") from None
    if not 0 < len(found) <= CHAIN_CERTIFICATES:
        raise Broken("certificates", f"it holds {len(found)} certificates.")
    return tuple(found)


def anchored(
    signer: x509.Certificate, served: Sequence[x509.Certificate], roots: Certificates, now: int
) -> None:
    """Checks that `signer` leads to one of the pinned `roots` at `now`.

    served: what came with it, in any order; a root among them is never trusted.
    Raises Broken (chain).
    """
    # Any extension an end entity of the web would need is optional here; whether the signer may
    # sign is its keyUsage, which depends on what it signed, so the callers look at that.
    ca_policy = (
        ExtensionPolicy.webpki_defaults_ca()
        .may_be_present(x509.SubjectKeyIdentifier, Criticality.AGNOSTIC, None)
        .may_be_present(x509.AuthorityKeyIdentifier, Criticality.AGNOSTIC, None)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
    )
    signer_policy = (
        ExtensionPolicy.webpki_defaults_ee()
        .may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
        .may_be_present(x509.AuthorityKeyIdentifier, Criticality.AGNOSTIC, None)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _any_key_usage)
    )
    verifier = (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(datetime.datetime.fromtimestamp(now, datetime.UTC))
        .max_chain_depth(CHAIN_DEPTH)
        .extension_policies(ca_policy=ca_policy, ee_policy=signer_policy)
        .build_client_verifier()
    )
    intermediates = [each for each in served if each.subject != each.issuer]
    try:
        verifier.verify(signer, intermediates)
    except VerificationError as error:
        names = " or ".join(f"{root.subject.rfc4514_string()!r}" for root in roots)
        raise Broken(
            "chain",
            f"its signer {signer.subject.rfc4514_string()!r} has no valid path to the pinned"
            f" STI-PA root {names} ({error}).",
        ) from None


def read_jws(text: str, limit: int) -> Jws:
    """The parts of a compact JWS of at most `limit` characters (RFC 7515 section 7.1).

    Raises Broken (size, segments, header, alg, x5u).
    """
    if len(text) > limit:
        raise Broken("size", f"it is longer than {limit} characters.")
    if text.count(".") != 2 or not all(text.split(".")) or not text.isascii():
        raise Broken("segments", "it does not have the three parts of a signed JWT.")
    try:
        # Typed first: joserfc takes any JSON for a header and stumbles over it later.
        header = msgspec.json.decode(b64url_decode(text.split(".")[0]), type=_Header)
        signed = jws.extract_compact(text.encode(), registry=_registry(limit))
    except (Invalid, JoseError, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise Broken("header", f"its JOSE header cannot be read ({error}).") from None
    if header.crit is not None or header.b64 is not None:
        raise Broken("header", "its JOSE header has critical members that kmsd does not know.")
    if header.alg != "ES256":
        raise Broken("alg", f"its alg is {header.alg!r}, and must be 'ES256'.")
    if not header.x5u.startswith("https://"):
        raise Broken("x5u", f"its x5u is {header.x5u!r}, and must be an https URL.")
    return Jws(signed, header.typ, header.x5u)


def payload(signed: Jws, chain: Certificates, roots: Certificates, now: int) -> bytes:
    """What was signed, after signature and signer were checked.

    chain: what the x5u served; its first certificate signs, by PROTOCOL 2.2 and 2.5.
    Raises Broken (signature, chain).
    """
    signer = chain[0]
    if not key_usage(signer).digital_signature:
        raise Broken("chain", "its signer's certificate is not for signatures (keyUsage).")
    anchored(signer, chain[1:], roots, now)
    try:
        key = signer.public_key()
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
            raise Broken("signature", "its signer's key is not a P-256 one.")
        registry = _registry(len(signed.signed.segments["payload"]))
        good = jws.validate_compact(signed.signed, ECKey.import_key(key), registry=registry)
    except (JoseError, ValueError, UnsupportedAlgorithm):
        good = False
    if not good:
        raise Broken("signature", f"the certificate at {signed.x5u} does not verify it.")
    return signed.signed.payload


def accept_list(
    signed: Jws,
    chain: Certificates,
    roots: Certificates,
    *,
    authority: str,
    last: TrustList | None,
    now: int,
) -> TrustList:
    """The trusted STI-CAs, if the list is whole, current and not older than `last`.

    Raises PeerRefused (TRUST_LIST_REJECTED with the rule, TRUST_LIST_ROLLBACK).
    """
    with refusing("TRUST_LIST_REJECTED", "The list of trusted STI-CAs was not accepted"):
        try:
            listed = msgspec.json.decode(payload(signed, chain, roots, now), type=_Listed)
        except (ValueError, msgspec.DecodeError) as error:
            raise Broken("claims", f"its payload is not a trust list ({error}).") from None
        if listed.exp <= now:
            raise Broken("exp", f"it expired {now - listed.exp} seconds ago.")
        if not listed.trust_list:
            raise Broken("members", "it is empty.")
        members = {pem: None for entry in listed.trust_list for pem in _members(entry)}
    if last is not None and listed.sequence < last.sequence:
        raise rollback("TRUST_LIST_ROLLBACK", "list", "sequence", listed.sequence, last.sequence)
    return TrustList(authority, listed.sequence, listed.exp, now, tuple(members))


@contextmanager
def refusing(reason: str, what: str, next_step: str = "") -> Iterator[None]:
    """Turns a Broken into the STI-PA's PeerRefused `reason`, with the rule as metadata."""
    try:
        yield
    except Broken as error:
        raise PeerRefused(
            reason,
            f"{what}: {error.why[:1000]}",
            peer="sti-pa",
            next_step=next_step or "Report it to the STI-PA; kmsd keeps what it accepted last.",
            rule=error.rule,
        ) from error


def key_usage(certificate: x509.Certificate) -> x509.KeyUsage:
    """The keyUsage; everything when the certificate does not say (RFC 5280 section 4.2.1.3).

    Raises Broken (chain).
    """
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return x509.KeyUsage(True, True, True, True, True, True, True, False, False)
    except (ValueError, x509.DuplicateExtension) as error:
        raise Broken("chain", f"its signer's extensions cannot be read ({error}).") from None


def rollback(reason: str, what: str, member: str, got: int, had: int) -> PeerRefused:
    """The refusal of something signed that is older than what was accepted before."""
    return PeerRefused(
        reason,
        f"The STI-PA served a {what} with {member} {got}, older than {had}, accepted before.",
        peer="sti-pa",
        next_step="An old one may be replayed on the way: check the connection to the STI-PA.",
        rule=member,
    )


class _Header(msgspec.Struct, frozen=True):
    alg: str
    typ: str = ""
    x5u: str = ""
    crit: Any = None
    b64: Any = None


class _Listed(msgspec.Struct, frozen=True):
    """Payload of the trust list; sequence and exp must be integers (PROTOCOL 2.5)."""

    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    exp: Seconds
    trust_list: tuple[str, ...] = msgspec.field(name="trustList")


def _registry(limit: int) -> jws.JWSRegistry:
    # joserfc's own limits (512 octets of header, 128 000 of payload) are too small for a list.
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    registry.max_header_length = 4096
    registry.max_payload_length = limit
    return registry


def _from_der(data: bytes) -> list[x509.Certificate]:
    try:
        return [x509.load_der_x509_certificate(data)]
    except ValueError:
        return pkcs7.load_der_pkcs7_certificates(data)


def _any_key_usage(_: Policy, __: x509.Certificate, ___: x509.KeyUsage | None) -> None:
    """A signer of CRLs may be a CA; without this the web's policy refuses keyCertSign."""


def _members(entry: str) -> Iterator[str]:
    try:
        found = certificates(entry.encode())
        for each in found:
            constraints = each.extensions.get_extension_for_class(x509.BasicConstraints).value
            if not constraints.ca:
                name = each.subject.rfc4514_string()
                raise Broken("members", f"its member {name!r} is not a CA certificate.")
            yield each.public_bytes(Encoding.PEM).decode()
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise Broken("members", f"a member is not a CA certificate ({error}).") from None
    except Broken as error:
        raise Broken("members", f"a member cannot be used: {error.why}") from None
