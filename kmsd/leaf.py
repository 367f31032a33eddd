"""The end entity column of the STI certificate profile, as rules a leaf is asked.

ATIS-1000080 6.4.1 and the US certificate policy (PROTOCOL 3.5). Each rule says what is wrong, or
"" when it holds. Stricter than a verifier has to be: what we sign with must pass everywhere.
Not here: what the leaf leads to (`path`).
"""

import hashlib
import re
from collections.abc import Callable

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from kmsd import tnauthlist
from kmsd.certs import spki
from kmsd.errors import Invalid
from kmsd.path import Path, extension, scope, validity

SHORTEST = 3600
"""Seconds that a certificate is valid, at least: less leaves no time to replace it."""
LONGEST = 3 * 366 * 86400
"""At most."""


class Candidate(msgspec.Struct, frozen=True):
    """A leaf and what it has to meet. public_key: DER SubjectPublicKeyInfo of the key we made."""

    leaf: x509.Certificate
    path: Path
    public_key: bytes
    spc: str
    policy_oids: tuple[str, ...]
    country: str
    crl_url: str


def own_key(it: Candidate) -> str:
    """It certifies the key this credential has in the HSM."""
    return "" if spki(it.leaf) == it.public_key else "it certifies another key than ours"


def version(it: Candidate) -> str:
    """X.509 version 3."""
    return "" if it.leaf.version is x509.Version.v3 else "it is no X.509 v3 certificate"


def serial(it: Candidate) -> str:
    """Positive, 64 bits or more, 20 octets at most (RFC 5280 section 4.1.2.2)."""
    # In whole octets, as linters count: one random 64-bit number in two begins with a zero bit.
    if not 56 < it.leaf.serial_number.bit_length() < 160 or it.leaf.serial_number <= 0:
        return "its serial number is not a positive number of 8 to 20 octets"
    return ""


def signature_algorithm(it: Candidate) -> str:
    """ecdsa-with-SHA256."""
    if it.leaf.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        return "it is not signed with ecdsa-with-SHA256"
    return ""


def p256(it: Candidate) -> str:
    """A P-256 key."""
    key = it.leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return "its key is not a P-256 key"
    return ""


def subject(it: Candidate) -> str:
    """Exactly one C (ISO 3166, as the trust domain has it), O and CN.

    serialNumber is optional since CP v1.4.
    """
    for oid, name in _SUBJECT:
        if len(it.leaf.subject.get_attributes_for_oid(oid)) != 1:
            return f"its subject has not exactly one {name}"
    country = it.leaf.subject.get_attributes_for_oid(NameOID.COUNTRY_NAME)[0].value
    if not re.fullmatch("[A-Z]{2}", str(country)):
        return f"its subject's C is {country!r}, and no country code"
    if it.country and country != it.country:
        return f"its subject's C is {country!r}, not {it.country!r}"
    return ""


def common_name(it: Candidate) -> str:
    """A CN with `SHAKEN <SPC>` as whole words, next to each other."""
    wanted = re.compile(rf"\bSHAKEN {re.escape(it.spc)}\b")
    for name in it.leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if wanted.search(str(name.value)):
            return ""
    return f"its CN does not have the words 'SHAKEN {it.spc}'"


def basic_constraints(it: Candidate) -> str:
    """Critical, CA:FALSE."""
    constraints = extension(it.leaf, x509.BasicConstraints)
    if constraints is None or constraints.ca or not _critical(it, x509.BasicConstraints.oid):
        return "its basicConstraints are not critical and CA:FALSE"
    return ""


def key_usage(it: Candidate) -> str:
    """Critical, digitalSignature only, in DER."""
    if extension(it.leaf, x509.KeyUsage) != _DIGITAL_SIGNATURE:
        return "its keyUsage is not digitalSignature alone"
    # Seen in the field: `03 02 00 80`, which parsers take, but the unused bits are not counted.
    if _KEY_USAGE_DER not in it.leaf.tbs_certificate_bytes:
        return "its keyUsage is not critical, or not encoded as 03 02 07 80"
    return ""


def subject_key_id(it: Candidate) -> str:
    """The 160-bit SHA-1 of the public key (RFC 5280 section 4.2.1.2, method 1)."""
    identifier = extension(it.leaf, x509.SubjectKeyIdentifier)
    if identifier is None or identifier.digest != _sha1_of_key(it.leaf):
        return "its subjectKeyIdentifier is not the SHA-1 of its key"
    return ""


def authority_key_id(it: Candidate) -> str:
    """Present, and the subjectKeyIdentifier of the certificate above it."""
    authority = extension(it.leaf, x509.AuthorityKeyIdentifier)
    if authority is None or not authority.key_identifier:
        return "it has no authorityKeyIdentifier"
    for above in it.path.links[1:2]:
        identifier = extension(above, x509.SubjectKeyIdentifier)
        if identifier is not None and identifier.digest != authority.key_identifier:
            return "its authorityKeyIdentifier is not that of the certificate above it"
    return ""


def policies(it: Candidate) -> str:
    """Exactly one certificate policy, and an accepted one."""
    listed = extension(it.leaf, x509.CertificatePolicies)
    oids = [policy.policy_identifier.dotted_string for policy in listed or ()]
    if len(oids) != 1:
        return "it has not exactly one certificate policy"
    if it.policy_oids and not any(f"{oids[0]}.".startswith(f"{arc}.") for arc in it.policy_oids):
        return f"its certificate policy {oids[0]} is not an accepted one"
    return ""


def crl_distribution(it: Candidate) -> str:
    """One CRL distribution point: a URI and a cRLIssuer, since the STI-PA's CRL is indirect."""
    points = list(extension(it.leaf, x509.CRLDistributionPoints) or ())
    if len(points) != 1 or points[0].reasons:
        return "it has not exactly one CRL distribution point"
    names = list(points[0].full_name or ())
    if [type(name) for name in names] != [x509.UniformResourceIdentifier]:
        return "its CRL distribution point is not one URI"
    if it.crl_url and names[0].value != it.crl_url:
        return f"its CRL distribution point is not {it.crl_url}"
    if [type(name) for name in points[0].crl_issuer or ()] != [x509.DirectoryName]:
        return "its CRL distribution point does not name the issuer of the CRL"
    return ""


def one_spc(it: Candidate) -> str:
    """A TNAuthList with exactly one entry: our SPC."""
    der = scope(it.leaf)
    if der is None:
        return "it has no TNAuthList"
    try:
        listed = tnauthlist.decode(der)
    except Invalid as error:
        return error.message.rstrip(".")
    if listed.entries != (tnauthlist.Spc(it.spc),):
        return f"its TNAuthList is not the one SPC {it.spc}"
    return ""


def other_extensions(it: Candidate) -> str:
    """None but those of the profile."""
    for each in it.leaf.extensions:
        if each.oid not in _PROFILE:
            return f"it has the extension {each.oid.dotted_string}, which the profile does not know"
    return ""


def criticality(it: Candidate) -> str:
    """Only basicConstraints and keyUsage are critical."""
    for each in it.leaf.extensions:
        if each.critical and each.oid not in _MAY_BE_CRITICAL:
            return f"its extension {each.oid.dotted_string} is critical"
    return ""


def validity_period(it: Candidate) -> str:
    """Between SHORTEST and LONGEST seconds."""
    not_before, not_after = validity(it.leaf)
    if not SHORTEST <= not_after - not_before <= LONGEST:
        return f"it is valid for {not_after - not_before} seconds, not for 1 hour to 3 years"
    return ""


def within_issuers(it: Candidate) -> str:
    """It ends no later than any certificate above it: from then on nobody could verify it."""
    # Not compared: notBefore. STI-CAs date leaves back, and a new intermediate may be younger.
    for above in it.path.links[1:]:
        if validity(above)[1] < validity(it.leaf)[1]:
            return f"it outlives {above.subject.rfc4514_string()[:128]!r} above it"
    return ""


LEAF_RULES: tuple[tuple[str, Callable[[Candidate], str]], ...] = (
    ("own_key", own_key),
    ("version", version),
    ("serial", serial),
    ("signature_algorithm", signature_algorithm),
    ("p256", p256),
    ("subject", subject),
    ("common_name", common_name),
    ("basic_constraints", basic_constraints),
    ("key_usage", key_usage),
    ("subject_key_id", subject_key_id),
    ("authority_key_id", authority_key_id),
    ("policies", policies),
    ("crl_distribution", crl_distribution),
    ("one_spc", one_spc),
    ("other_extensions", other_extensions),
    ("criticality", criticality),
    ("validity_period", validity_period),
    ("within_issuers", within_issuers),
)

_SUBJECT = (
    (NameOID.COUNTRY_NAME, "C"),
    (NameOID.ORGANIZATION_NAME, "O"),
    (NameOID.COMMON_NAME, "CN"),
)
_DIGITAL_SIGNATURE = x509.KeyUsage(True, *[False] * 8)
# The one DER of this extension: its OID, critical, and the bits in an octet string.
_KEY_USAGE_DER = bytes.fromhex("300e0603551d0f0101ff040403020780")
_MAY_BE_CRITICAL = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE)
_PROFILE = (
    *_MAY_BE_CRITICAL,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    x509.ObjectIdentifier(tnauthlist.OID),
)


def _critical(it: Candidate, oid: x509.ObjectIdentifier) -> bool:
    return it.leaf.extensions.get_extension_for_oid(oid).critical


def _sha1_of_key(leaf: x509.Certificate) -> bytes:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha1(point, usedforsecurity=False).digest()
