"""The STI-CA's checks of a CSR (RFC 8555 7.4 and 11.1, RFC 9448 section 6, PROTOCOL 3.3)."""

import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from kmsd.lab import jws, tnauth
from kmsd.lab.problem import Problem
from kmsd.lab.state import Order
from kmsd.lab.world import World

_TN_AUTH_LIST = x509.ObjectIdentifier(tnauth.OID)
_REQUESTABLE = {
    _TN_AUTH_LIST,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
}
_CSR_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension)


@dataclass(frozen=True)
class Request:
    """What a good CSR asks for. subject: empty when the STI-CA is to make one."""

    key: ec.EllipticCurvePublicKey
    subject: x509.Name


def check_csr(der: bytes, order: Order, world: World) -> Request:
    """Raises Problem badCSR naming the first thing wrong; the order then stays ready."""
    try:
        csr = x509.load_der_x509_csr(der)
        key, extensions = csr.public_key(), csr.extensions
        signed = csr.is_signature_valid
        digest = csr.signature_hash_algorithm
    except _CSR_ERRORS as error:
        raise Problem("badCSR", f"The CSR cannot be read: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Problem("badCSR", "The CSR's key is not on P-256.")
    if not isinstance(digest, hashes.SHA256):
        raise Problem("badCSR", "The CSR is not signed with ecdsa-with-SHA256.")
    if not signed:
        raise Problem("badCSR", "The CSR's signature does not verify.")
    _check_extensions(extensions, order, world)
    _check_key(key, world)
    _check_subject(csr.subject, order, world)
    return Request(key, csr.subject)


def _check_extensions(extensions: x509.Extensions, order: Order, world: World) -> None:
    for extension in extensions:
        if extension.oid not in _REQUESTABLE:
            raise Problem("badCSR", f"The CSR asks for an extension {extension.oid.dotted_string}.")
    try:
        wanted = extensions.get_extension_for_oid(_TN_AUTH_LIST)
    except x509.ExtensionNotFound as error:
        raise Problem("badCSR", "The CSR has no TNAuthList.") from error
    if wanted.critical:
        raise Problem("badCSR", "The CSR's TNAuthList is critical.")
    if wanted.value.public_bytes() != order.der:
        raise Problem("badCSR", "The CSR's TNAuthList is not the order's.")
    asked_ca = any(
        extension.value.ca
        for extension in extensions
        if isinstance(extension.value, x509.BasicConstraints)
    )
    if asked_ca != order.token_ca:
        raise Problem(
            "badCSR",
            "RFC 9448 section 6, ca: the CSR's cA is not what the token's ca says.",
            rule="ca",
        )
    if asked_ca:
        raise Problem("badCSR", "This STI-CA certifies no delegate CAs.")
    for extension in extensions:
        if isinstance(extension.value, x509.CRLDistributionPoints):
            _check_crldp(extension.value, world)


def _check_crldp(value: x509.CRLDistributionPoints, world: World) -> None:
    for point in value:
        uris = [each.value for each in point.full_name or ()]
        if uris != [world.urls.crl]:
            raise Problem("badCSR", "The CSR's CRL distribution point is not the STI-PA's.")


def _check_key(key: ec.EllipticCurvePublicKey, world: World) -> None:
    thumbprint = jws.thumbprint(key)
    if world.book.account_by_key(thumbprint):
        raise Problem("badCSR", "The CSR's key is an account key (RFC 8555 section 11.1).")
    if world.book.certified(thumbprint):
        raise Problem("badCSR", "The CSR's key was certified before.")


def _check_subject(subject: x509.Name, order: Order, world: World) -> None:
    if not list(subject):
        return
    single = {NameOID.COUNTRY_NAME: "C", NameOID.ORGANIZATION_NAME: "O", NameOID.COMMON_NAME: "CN"}
    for oid, name in single.items():
        if len(subject.get_attributes_for_oid(oid)) != 1:
            raise Problem("badCSR", f"The CSR's subject needs exactly one {name}.")
    country = str(subject.get_attributes_for_oid(NameOID.COUNTRY_NAME)[0].value)
    if not re.fullmatch(r"[A-Z]{2}", country):
        raise Problem("badCSR", f"{country!r} is no ISO 3166 country code.")
    common_name = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    if not re.search(rf"\bSHAKEN {order.spc}\b", common_name):
        raise Problem("badCSR", f"The CSR's CN does not hold 'SHAKEN {order.spc}'.")
    if world.switches.unique_subject and any(
        issued.subject == subject.public_bytes() for issued in world.book.issued.values()
    ):
        raise Problem("badCSR", "The CSR's subject was certified before (RFC 5280 4.1.2.6).")
