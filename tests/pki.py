"""Certificates, JWS and CRLs as an STI-PA makes them, for tests: each value can be spoilt."""

import datetime
import ipaddress
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from asn1crypto import crl as asn1_crl
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from kmsd.jose import b64url

NOW = 1_800_000_000
DAY = 86_400


class Signer(NamedTuple):
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "STI-PA"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def key_usage(*, signs: bool = False, ca: bool = False, crl: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(signs, False, False, False, False, ca, crl, False, False)


def certify(
    common_name: str,
    by: Signer | None = None,
    *,
    ca: bool = False,
    usage: x509.KeyUsage | Literal["by what it is"] | None = "by what it is",
    since: int = NOW - DAY,
    until: int = NOW + 30 * DAY,
    curve: ec.EllipticCurve | None = None,
    critical: str = "",
) -> Signer:
    """A new key and a certificate for it, self-signed unless `by` somebody."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common_name))
        .issuer_name(by.certificate.subject if by else name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(since))
        .not_valid_after(moment(until))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(own, critical=False)
    )
    if usage == "by what it is":
        usage = key_usage(signs=not ca, ca=ca, crl=ca)
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    if critical:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(critical), b"\5\0")
        builder = builder.add_extension(unknown, critical=True)
    return Signer(key, builder.sign(by.key if by else key, hashes.SHA256()))


def https_certificate(by: Signer) -> Signer:
    """For a server on 127.0.0.1, valid around the real time: TLS asks the system's clock."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name("127.0.0.1"))
        .issuer_name(by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(authority, critical=False)
        .sign(by.key, hashes.SHA256())
    )
    return Signer(key, certificate)


def with_two_key_usages(signer: Signer) -> Signer:
    """The same certificate with its keyUsage twice; nobody signed that."""
    parsed = asn1_x509.Certificate.load(signer.certificate.public_bytes(Encoding.DER))
    extensions = parsed["tbs_certificate"]["extensions"]
    extensions.append(next(e for e in extensions if e["extn_id"].native == "key_usage"))
    return Signer(signer.key, x509.load_der_x509_certificate(parsed.dump(force=True)))


def with_unknown_key(signer: Signer) -> x509.Certificate:
    """The same certificate with its key on a curve that nobody knows; nobody signed that."""
    curve = bytes.fromhex("06082a8648ce3d030107")  # secp256r1
    der = signer.certificate.public_bytes(Encoding.DER)
    return x509.load_der_x509_certificate(der.replace(curve, curve[:-1] + b"\x7f"))


def remade(
    found: x509.CertificateRevocationList,
    by: Signer,
    *,
    next_update: bool = True,
    twice: bool = False,
) -> x509.CertificateRevocationList:
    """The CRL signed anew, without its nextUpdate, or with its first extension twice."""
    parsed = asn1_crl.CertificateList.load(found.public_bytes(Encoding.DER))
    to_be_signed = parsed["tbs_cert_list"]
    if not next_update:
        to_be_signed["next_update"] = None
    if twice:
        to_be_signed["crl_extensions"].append(to_be_signed["crl_extensions"][0])
    signature = by.key.sign(to_be_signed.dump(force=True), ec.ECDSA(hashes.SHA256()))
    parsed["signature"] = signature
    return x509.load_der_x509_crl(parsed.dump(force=True))


def moment(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def sign_jws(by: Signer, header: dict[str, Any], payload: dict[str, Any] | bytes) -> str:
    """A compact JWS, ES256 whatever its header says."""
    octets = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signing_input = f"{b64url(json.dumps(header).encode())}.{b64url(octets)}"
    der = by.key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256()))
    size = (by.key.curve.key_size + 7) // 8
    raw = b"".join(each.to_bytes(size, "big") for each in decode_dss_signature(der))
    return f"{signing_input}.{b64url(raw)}"


def make_crl(
    by: Signer,
    *,
    number: int | None = 7,
    url: str = "",
    aia: str = "",
    since: int = NOW - 60,
    until: int = NOW + DAY,
    revoked: Sequence[int] = (),
    whose: x509.GeneralName | None = None,
    delta: bool = False,
    point: x509.IssuingDistributionPoint | None = None,
) -> x509.CertificateRevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.subject)
        .last_update(moment(since))
        .next_update(moment(until))
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if delta:
        builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    if url:
        names = [x509.UniformResourceIdentifier(url)]
        point = x509.IssuingDistributionPoint(names, None, False, False, None, True, False)
    if point:
        builder = builder.add_extension(point, critical=True)
    if aia:
        location = x509.UniformResourceIdentifier(aia)
        access = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, location)
        builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        if whose:
            entry = entry.add_extension(x509.CertificateIssuer([whose]), critical=True)
        builder = builder.add_revoked_certificate(entry.revocation_date(moment(since)).build())
    return builder.sign(by.key, hashes.SHA256())
