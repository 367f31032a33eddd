"""The STI-PA's CRL: one indirect CRL for all STI-CAs (RFC 5280 section 5, PROTOCOL 2.6)."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import AuthorityInformationAccessOID

from kmsd.lab import pki
from kmsd.lab.world import World

CRL_SIGNER, FOREIGN_SIGNER = 2, 3  # numbers of certificateId_<n>.crt

_GARBAGE = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"

_REASONS = {
    1: x509.ReasonFlags.key_compromise,
    2: x509.ReasonFlags.ca_compromise,
    3: x509.ReasonFlags.affiliation_changed,
    4: x509.ReasonFlags.superseded,
    5: x509.ReasonFlags.cessation_of_operation,
    6: x509.ReasonFlags.certificate_hold,
    9: x509.ReasonFlags.privilege_withdrawn,
    10: x509.ReasonFlags.aa_compromise,
}


def certificate_revocation_list(world: World) -> bytes:
    """The CRL of this moment, PEM (or DER by switch), with what is revoked and its issuers."""
    switches = world.switches
    if switches.crl == "garbage":
        return _GARBAGE
    signer, number = world.pki.pa_crl, CRL_SIGNER
    if switches.crl == "foreign":
        signer, number = world.pki.foreign_pa, FOREIGN_SIGNER
    until = -60 if switches.crl == "expired" else switches.crl_seconds
    issued = world.today() - datetime.timedelta(seconds=max(0, -until) * 2)
    url = world.urls.crl + ("/elsewhere" if switches.crl == "wrong_idp" else "")
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(pki.CRL_ISSUER)
        .last_update(issued)
        .next_update(world.today() + datetime.timedelta(seconds=until))
        .add_extension(_distribution_point(url), critical=True)
        .add_extension(_signer_is_at(world.urls.pa_certificate(number)), critical=False)
        .add_extension(pki.authority_key_id(signer.certificate), critical=False)
        .add_extension(x509.CRLNumber(world.started + len(world.book.revoked)), critical=False)
    )
    issuer = pki.CRL_ISSUER
    for revoked in world.book.revoked:
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(revoked.serial)
            .revocation_date(datetime.datetime.fromtimestamp(int(revoked.at), datetime.UTC))
        )
        if revoked.issuer != issuer:  # else it is the last entry's (RFC 5280 section 5.3.3)
            issuer = revoked.issuer
            whose = x509.CertificateIssuer([x509.DirectoryName(issuer)])
            entry = entry.add_extension(whose, critical=True)
        if revoked.reason in _REASONS:  # unspecified (0) is left out, RFC 5280 5.3.1
            entry = entry.add_extension(x509.CRLReason(_REASONS[revoked.reason]), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    encoding = serialization.Encoding.DER if switches.crl_der else serialization.Encoding.PEM
    return builder.sign(signer.key, hashes.SHA256()).public_bytes(encoding)


def known_reason(reason: int) -> bool:
    return reason == 0 or reason in _REASONS


def _distribution_point(url: str) -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=True,
        only_contains_attribute_certs=False,
    )


def _signer_is_at(url: str) -> x509.AuthorityInformationAccess:
    return x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url)
            )
        ]
    )
