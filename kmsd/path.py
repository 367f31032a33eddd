"""The way from a leaf to a trusted STI-CA, and what must hold along it (RFC 5280 section 6).

Each rule looks at a Path and says what is wrong, or "" when it holds; the acceptance gate and
the verification of PASSporTs ask the same ones. Not here: the profile of the leaf (`gate`).
Written out because `cryptography`'s verifier is the web's: it wants a subjectAltName, refuses
the critical TNAuthList some STI-CAs issue, and does not name the rule that failed.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from kmsd import tnauthlist
from kmsd.certs import Chain, read_chain
from kmsd.errors import Invalid

CLOCK_SKEW = 300
"""Seconds by which an STI-CA's clock may be ahead of ours."""

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


class Path(msgspec.Struct, frozen=True):
    """A chain and where it leads at `now` (seconds since 1970 UTC).

    chain: as served, leaf first. anchor: the trusted certificate it ends at, if any.
    links: the leaf and what certifies it up to the anchor, each once. revoked: from the CRL.
    """

    chain: Chain
    links: Chain
    anchor: x509.Certificate | None
    now: int
    revoked: frozenset[tuple[object, int]] = frozenset()


Rule = Callable[[Path], str]


def path(chain: Chain, roots: Sequence[str], *, now: int, crl: bytes | None = None) -> Path:
    """The path of a chain.

    roots: PEM certificates of the STI-PA's list, intermediates among them or not; all are
    trusted alike. crl: its CRL as DER or PEM, signature and dates checked before.
    Raises Invalid: ROOT_MALFORMED, CRL_MALFORMED.
    """
    on_crl = revoked(crl) if crl is not None else frozenset()
    # A renewed root is in the list twice for a while: rather the one that is valid.
    anchors = sorted(
        (anchor for pem in roots for anchor in _anchors(pem)),
        key=lambda anchor: not validity(anchor)[0] <= now <= validity(anchor)[1],
    )
    for place, certificate in enumerate(chain):
        links = chain[: place + 1]
        if place and certificate in anchors:
            return Path(chain, links, certificate, now, on_crl)
        for anchor in anchors:
            if issued_by(certificate, anchor):
                return Path(chain, (*links, anchor), anchor, now, on_crl)
    return Path(chain, chain, None, now, on_crl)


def in_order(path: Path) -> str:
    """The leaf first, then each the certifier of the one before it, with a sound signature."""
    for below, above in zip(path.chain, path.chain[1:], strict=False):
        if not issued_by(below, above):
            return f"{_name(below)} is followed by {_name(above)}, which did not certify it"
    return ""


def anchored(path: Path) -> str:
    """It leads to a certificate in the STI-PA's list of trusted STI-CAs."""
    if path.anchor is None:
        return f"{_name(path.chain[-1])} leads to no STI-CA in the STI-PA's list"
    return ""


def end_entity(path: Path) -> str:
    """The leaf is no CA, may sign, and says nothing critical that is not understood here."""
    leaf = path.chain[0]
    constraints = extension(leaf, x509.BasicConstraints)
    usage = extension(leaf, x509.KeyUsage)
    if constraints is not None and constraints.ca:
        return f"{_name(leaf)} is a CA"
    if usage is not None and not usage.digital_signature:
        return f"{_name(leaf)} may not sign"
    return _not_understood(leaf)


def authorities(path: Path) -> str:
    """Each certifier is a CA that may sign certificates with this many CAs below it."""
    for depth, certificate in enumerate(path.links[1:]):
        constraints = extension(certificate, x509.BasicConstraints)
        usage = extension(certificate, x509.KeyUsage)
        if constraints is None or not constraints.ca:
            return f"{_name(certificate)} is no CA"
        if constraints.path_length is not None and constraints.path_length < depth:
            return f"{_name(certificate)} may not have CAs below it"
        if usage is not None and not usage.key_cert_sign:
            return f"{_name(certificate)} may not sign certificates"
        if scope(certificate) is not None:
            return f"{_name(certificate)} is a CA with a TNAuthList"
        if certificate != path.anchor and (unknown := _not_understood(certificate)):
            return unknown
    return ""


def valid_now(path: Path) -> str:
    """Every certificate is valid now; one that begins within CLOCK_SKEW seconds counts."""
    for certificate in path.links:
        not_before, not_after = validity(certificate)
        if path.now + CLOCK_SKEW < not_before:
            return f"{_name(certificate)} is valid from {certificate.not_valid_before_utc}"
        if path.now > not_after:
            return f"{_name(certificate)} was valid until {certificate.not_valid_after_utc}"
    return ""


def not_revoked(path: Path) -> str:
    """None is on the STI-PA's CRL, looked for by issuer and serial number."""
    for certificate in path.links:
        if (_key(certificate.issuer), certificate.serial_number) in path.revoked:
            return f"{_name(certificate)} is on the STI-PA's CRL"
    return ""


PATH_RULES: tuple[tuple[str, Rule], ...] = (
    ("chain_order", in_order),
    ("trusted_path", anchored),
    ("end_entity", end_entity),
    ("authorities", authorities),
    ("valid_now", valid_now),
    ("revoked", not_revoked),
)


def issued_by(below: x509.Certificate, above: x509.Certificate) -> bool:
    """Whether names and signature (ECDSA with SHA-256 or SHA-384, P-256 or P-384) fit."""
    key = above.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        return False
    try:
        if not isinstance(below.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384):
            return False
        below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def validity(certificate: x509.Certificate) -> tuple[int, int]:
    """notBefore and notAfter, both inclusive, in seconds since 1970 UTC."""
    return (
        int(certificate.not_valid_before_utc.timestamp()),
        int(certificate.not_valid_after_utc.timestamp()),
    )


def extension(certificate: x509.Certificate, kind: type[_Kind]) -> _Kind | None:
    """The value of an extension, if it is there."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def scope(certificate: x509.Certificate) -> bytes | None:
    """DER of the TNAuthList, critical or not, if there is one."""
    for each in certificate.extensions:
        if each.oid == _TNAUTHLIST and isinstance(each.value, x509.UnrecognizedExtension):
            return each.value.value
    return None


def revoked(crl: bytes) -> frozenset[tuple[object, int]]:
    """(issuer, serial number) of each entry of an indirect CRL (RFC 5280 section 5.3.3).

    crl: DER or PEM. Raises Invalid (CRL_MALFORMED) when an entry cannot be read.
    """
    entries: set[tuple[object, int]] = set()
    try:
        load = x509.load_pem_x509_crl if crl.startswith(b"-----") else x509.load_der_x509_crl
        listed = load(crl)
        issuer = listed.issuer
        for entry in listed:
            # An entry without its own certificate issuer has that of the entry before it.
            issuer = _certificate_issuer(entry) or issuer
            entries.add((_key(issuer), entry.serial_number))
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Invalid("CRL_MALFORMED", f"The STI-PA's CRL cannot be read: {error}.") from error
    return frozenset(entries)


_TNAUTHLIST = x509.ObjectIdentifier(tnauthlist.OID)
_UNDERSTOOD = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    _TNAUTHLIST,  # some STI-CAs mark it critical
)
_CURVES = ("secp256r1", "secp384r1")


def _anchors(pem: str) -> Chain:
    try:
        return read_chain(pem)
    except Invalid as error:
        message = f"A certificate in the list of trusted STI-CAs cannot be read: {error.message}"
        raise Invalid("ROOT_MALFORMED", message) from error


def _certificate_issuer(entry: x509.RevokedCertificate) -> x509.Name | None:
    try:
        names = entry.extensions.get_extension_for_class(x509.CertificateIssuer).value
    except x509.ExtensionNotFound:
        return None
    for name in names.get_values_for_type(x509.DirectoryName):
        return name
    raise ValueError("an entry's certificate issuer is no directory name")


def _key(name: x509.Name) -> object:
    # RFC 5280 section 7.1: string types, case and runs of spaces make no difference.
    return tuple(
        frozenset((each.oid, " ".join(str(each.value).casefold().split())) for each in rdn)
        for rdn in name.rdns
    )


def _not_understood(certificate: x509.Certificate) -> str:
    for each in certificate.extensions:
        if each.critical and each.oid not in _UNDERSTOOD:
            oid = each.oid.dotted_string
            return f"{_name(certificate)} has the critical extension {oid}, which is unknown"
    return ""


def _name(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string()[:128] or "a certificate with no subject")
