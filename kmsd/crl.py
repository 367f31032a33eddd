"""The STI-PA's CRL: one indirect CRL for all STI-CAs of a trust domain, checked before use.

Not here: fetching it (`authority`), and which of its entries concern a certificate.
RFC 5280 sections 5.2 and 6.3.3; what the field does with it is in PROTOCOL 2.6.
"""

from collections.abc import Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from kmsd.errors import Invalid
from kmsd.model import RevocationList
from kmsd.path import revoked
from kmsd.trust import Broken, Certificates, anchored, key_usage, refusing, rollback

CLOCK_SKEW = 300
"""Seconds by which the STI-PA's clock may be ahead of ours."""

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
_WHAT = "The STI-PA's CRL was not accepted"


def read(data: bytes) -> x509.CertificateRevocationList:
    """The CRL in `data`, PEM or DER. Raises PeerRefused (CRL_REJECTED)."""
    with refusing("CRL_REJECTED", _WHAT):
        try:
            if b"-----BEGIN X509 CRL-----" in data:
                return x509.load_pem_x509_crl(data)
            return x509.load_der_x509_crl(data)
        except ValueError as error:
            raise Broken("encoding", f"it is no CRL in PEM or DER ({error}).") from None


def signer_urls(crl: x509.CertificateRevocationList) -> tuple[str, ...]:
    """Where the CRL says its signer's certificates are (AIA caIssuers, RFC 5280 section 5.2.7).

    Raises PeerRefused (CRL_REJECTED).
    """
    with refusing("CRL_REJECTED", _WHAT):
        access = _extension(crl, x509.AuthorityInformationAccess)
    return tuple(
        description.access_location.value
        for description in access or ()
        if description.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        and isinstance(description.access_location, x509.UniformResourceIdentifier)
    )


def accept(
    crl: x509.CertificateRevocationList,
    served: Sequence[x509.Certificate],
    roots: Certificates,
    *,
    authority: str,
    url: str,
    last: RevocationList | None,
    now: int,
) -> RevocationList:
    """The CRL as a value, if it is signed for this STI-PA, current, and not older than `last`.

    served: certificates among which the signer and its path are looked for; url: where the CRL
    was fetched. Raises PeerRefused (CRL_REJECTED with the rule, CRL_ROLLBACK).
    """
    with refusing("CRL_REJECTED", _WHAT):
        _check_scope(crl, url)
        signer = _crl_signer(crl, (*served, *roots))
        anchored(signer, served, roots, now)
        if int(crl.last_update_utc.timestamp()) > now + CLOCK_SKEW:
            raise Broken("thisUpdate", f"it is from the future ({crl.last_update_utc}).")
        if crl.next_update_utc is None:
            raise Broken("nextUpdate", "it does not say until when it is valid.")
        next_update = int(crl.next_update_utc.timestamp())
        if next_update <= now:
            raise Broken("nextUpdate", f"it ended {now - next_update} seconds ago.")
        counted = _extension(crl, x509.CRLNumber)
        if counted is None or not 0 <= counted.crl_number < 1 << 160:
            raise Broken("number", "it has no CRL number of 20 octets (RFC 5280 section 5.2.3).")
        der = crl.public_bytes(Encoding.DER)
        try:
            revoked(der)
        except Invalid as error:
            # Found now, while the last good one is there, and not when a chain is judged.
            raise Broken("entries", f"an entry of it cannot be read ({error.message})") from None
    if last is not None and counted.crl_number < int(last.number):
        raise rollback("CRL_ROLLBACK", "CRL", "number", counted.crl_number, int(last.number))
    return RevocationList(authority, str(counted.crl_number), next_update, now, der)


def _check_scope(crl: x509.CertificateRevocationList, url: str) -> None:
    known = {
        ExtensionOID.ISSUING_DISTRIBUTION_POINT,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_NUMBER,
    }
    for extension in _extensions(crl):
        if extension.critical and extension.oid not in known:
            oid = extension.oid.dotted_string
            raise Broken("extension", f"kmsd does not know its critical extension {oid}.")
    point = _extension(crl, x509.IssuingDistributionPoint)
    names = point.full_name or [] if point else []
    urls = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if urls and url not in urls:
        raise Broken("idp", f"it is the CRL of {', '.join(urls)}, but was fetched from {url}.")
    if point and (
        point.only_some_reasons
        or point.only_contains_ca_certs
        or point.only_contains_attribute_certs
    ):
        # Whatever is not in it could still be revoked (RFC 5280 section 6.3.3 b 2).
        raise Broken("scope", "it is not about all end entity certificates and all reasons.")


def _crl_signer(
    crl: x509.CertificateRevocationList, candidates: Sequence[x509.Certificate]
) -> x509.Certificate:
    named = [each for each in candidates if each.subject == crl.issuer]
    if not named:
        issuer = crl.issuer.rfc4514_string()
        raise Broken("signer", f"the certificate of its issuer {issuer!r} was not to be found.")
    for each in named:
        if _signed_by(crl, each) and key_usage(each).crl_sign:
            return each
    raise Broken("signature", "no certificate of its issuer that may sign CRLs verifies it.")


def _signed_by(crl: x509.CertificateRevocationList, signer: x509.Certificate) -> bool:
    try:
        strong = isinstance(crl.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384)
        return strong and crl.is_signature_valid(signer.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _extensions(crl: x509.CertificateRevocationList) -> x509.Extensions:
    try:
        return crl.extensions
    except (ValueError, x509.DuplicateExtension) as error:
        raise Broken("encoding", f"its extensions cannot be read ({error}).") from None


def _extension(crl: x509.CertificateRevocationList, kind: type[_Kind]) -> _Kind | None:
    try:
        return _extensions(crl).get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
