"""Keys and certificates of the lab: the STI-PA's, the STI-CA's, and foreign ones nobody trusts.

    STI-PA root -> signer of SPC tokens and of the list; -> signer of the CRL
    STI-CA root -> intermediate -> end entities (made in `issuance`)

The STI-CA's follow the certificate profile of ATIS-1000080 6.4.1 (PROTOCOL 3.5). Made new in a
folder, or taken from there when they still fit. Not here: certificates of HTTPS (`tls`).
"""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

POLICY = x509.ObjectIdentifier("2.16.840.1.114569.1.1.4")  # US SHAKEN certificate policy v1.4

CRL_ISSUER = x509.Name(  # this order of attributes, as real leaf certificates have it
    [
        x509.NameAttribute(NameOID.LOCALITY_NAME, "Loopback"),
        x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "NJ"),
        x509.NameAttribute(NameOID.COMMON_NAME, "STI-PA CRL"),
        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "STI-PA"),
    ]
)

Extensions = Sequence[tuple[x509.ExtensionType, bool]]

_YEARS = datetime.timedelta(days=3650)
_SPARE = datetime.timedelta(days=400)  # what is nearer to its end than this is made anew


@dataclass(frozen=True)
class Identity:
    """A private key, its certificate, and the certificates above it (root last)."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...] = ()

    def chain(self) -> tuple[x509.Certificate, ...]:
        return (self.certificate, *self.above)


@dataclass(frozen=True)
class Pki:
    pa_root: Identity
    pa_signer: Identity
    pa_crl: Identity
    ca_root: Identity
    ca: Identity
    foreign_pa: Identity
    foreign_ca: Identity


def open_pki(folder: Path, crl_url: str, now: datetime.datetime) -> Pki:
    """The hierarchies in `folder`, made where there are none yet.

    crl_url: where the STI-PA's CRL is; it stands in the STI-CA's intermediate, which is made
    anew (with the same key) when the URL is another one.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pa_root = _root(folder / "pa-root", _name("STI-PA Root Certificate", "STI-PA"), now)
    ca_root = _root(folder / "ca-root", _name("SHAKEN Lab ROOT", "Lab STI-CA"), now)
    foreign_pa = _root(folder / "foreign-pa-root", _name("Other PA Root", "Other PA"), now)
    foreign_ca = _root(folder / "foreign-ca-root", _name("SHAKEN Other ROOT", "Other CA"), now)
    return Pki(
        pa_root=pa_root,
        pa_signer=_pa_signer(folder / "pa-signer", _name("STI-PA", "STI-PA"), pa_root, now),
        pa_crl=_crl_signer(folder / "pa-crl", pa_root, now),
        ca_root=ca_root,
        ca=_intermediate(folder / "ca", "SHAKEN Lab Intermediate", ca_root, crl_url, now),
        foreign_pa=_pa_signer(
            folder / "foreign-pa", _name("Other PA", "Other PA"), foreign_pa, now
        ),
        foreign_ca=_intermediate(
            folder / "foreign-ca", "SHAKEN Other Intermediate", foreign_ca, crl_url, now
        ),
    )


def pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write_private(path: Path, content: bytes) -> None:
    """A file that only its owner may read, from the first byte on."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def crl_distribution_point(url: str, issuer: x509.Name | None) -> x509.CRLDistributionPoints:
    """One DistributionPoint: the URI, and the cRLIssuer of an indirect CRL."""
    names = [x509.DirectoryName(issuer)] if issuer is not None else None
    point = x509.DistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        reasons=None,
        crl_issuer=names,
    )
    return x509.CRLDistributionPoints([point])


def policies(*oids: x509.ObjectIdentifier) -> x509.CertificatePolicies:
    return x509.CertificatePolicies([x509.PolicyInformation(oid, None) for oid in oids])


def key_usage(*names: str) -> x509.KeyUsage:
    """Key usage with just these bits, by cryptography's argument names."""
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in names for name in every})


def authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    subject_key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key_id)


def certify(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    validity: tuple[datetime.datetime, datetime.datetime],
    extensions: Extensions,
    serial: int | None = None,
) -> x509.Certificate:
    """An X.509 v3 certificate signed with ecdsa-with-SHA256; serial: random, 159 bits."""
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public_key,
        serial_number=serial or x509.random_serial_number(),
        not_valid_before=validity[0],
        not_valid_after=validity[1],
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


def kept_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in the file, made where there is none."""
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key
    fresh = ec.generate_private_key(ec.SECP256R1())
    write_private(path, private_pem(fresh))
    return fresh


def kept(
    path: Path,
    subject: x509.Name,
    issuer: Identity | None,
    extensions: Extensions,
    now: datetime.datetime,
) -> Identity:
    """The identity in `<path>.key` and `<path>.crt`, remade when it does not fit (any more).

    SKI and, below an issuer, AKI are added to `extensions`.
    """
    key = kept_key(path.with_suffix(".key"))
    public = key.public_key()
    wanted = [*extensions, (x509.SubjectKeyIdentifier.from_public_key(public), False)]
    if issuer is not None:
        wanted.append((authority_key_id(issuer.certificate), False))
    above = issuer.chain() if issuer else ()
    certificate_file = path.with_suffix(".crt")
    if certificate_file.exists():
        old = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        if _fits(old, subject, public, issuer, wanted, now):
            return Identity(key, old, above)
    certificate = certify(
        subject,
        public,
        issuer.key if issuer else key,
        issuer.certificate.subject if issuer else subject,
        (now - datetime.timedelta(hours=1), now + _YEARS),
        wanted,
    )
    certificate_file.write_bytes(pem([certificate]))
    return Identity(key, certificate, above)


def _fits(
    old: x509.Certificate,
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer: Identity | None,
    wanted: Extensions,
    now: datetime.datetime,
) -> bool:
    try:
        old.verify_directly_issued_by(issuer.certificate if issuer else old)
    except (ValueError, InvalidSignature):
        return False
    there = [(extension.value, extension.critical) for extension in old.extensions]
    return (
        old.subject == subject
        and old.public_key() == public
        and old.not_valid_after_utc > now + _SPARE
        and there == list(wanted)
    )


def _root(path: Path, subject: x509.Name, now: datetime.datetime) -> Identity:
    return kept(
        path,
        subject,
        None,
        [
            (x509.BasicConstraints(ca=True, path_length=None), True),
            (key_usage("digital_signature", "key_cert_sign", "crl_sign"), True),
        ],
        now,
    )


def _intermediate(
    path: Path, name: str, root: Identity, crl_url: str, now: datetime.datetime
) -> Identity:
    organization = root.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return kept(
        path,
        _name(name, str(organization[0].value)),
        root,
        [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (key_usage("key_cert_sign"), True),
            (policies(POLICY), False),
            (crl_distribution_point(crl_url, CRL_ISSUER), False),
        ],
        now,
    )


def _pa_signer(path: Path, subject: x509.Name, root: Identity, now: datetime.datetime) -> Identity:
    return kept(
        path,
        subject,
        root,
        [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (key_usage("digital_signature"), True),
        ],
        now,
    )


def _crl_signer(path: Path, root: Identity, now: datetime.datetime) -> Identity:
    return kept(
        path,
        CRL_ISSUER,
        root,
        [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (key_usage("digital_signature", "crl_sign"), True),
        ],
        now,
    )


def _name(common_name: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
