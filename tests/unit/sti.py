"""A small STI hierarchy for tests: root -> intermediate -> leaf, each part replaceable."""

import base64
import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from kmsd import tnauthlist

NOW = 1_700_000_000
DAY = 86400
SPC = "1234"
POLICY = x509.ObjectIdentifier("2.16.840.1.114569.1.1.4")
CRL_URL = "https://pa.example.org/crl"
TNAUTHLIST = x509.ObjectIdentifier(tnauthlist.OID)

Extension = tuple[x509.ExtensionType, bool]
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def name(cn: str = "", c: str = "US", o: str = "Example", **more: str) -> x509.Name:
    parts = [(NameOID.COUNTRY_NAME, c), (NameOID.ORGANIZATION_NAME, o), (NameOID.COMMON_NAME, cn)]
    parts += [(getattr(NameOID, key), value) for key, value in more.items()]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts if value])


CRL_ISSUER = name("STI-PA CRL", o="STI-PA")


def usage(*bits: str) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
        " key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{bit: bit in bits for bit in every.split()})


def policies(*oids: x509.ObjectIdentifier) -> x509.CertificatePolicies:
    return x509.CertificatePolicies([x509.PolicyInformation(oid, None) for oid in oids])


def point(
    *urls: str, issuer: x509.Name | None = CRL_ISSUER, reasons: Any = None
) -> x509.DistributionPoint:
    return x509.DistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url) for url in urls] or None,
        relative_name=None,
        reasons=reasons,
        crl_issuer=[x509.DirectoryName(issuer)] if issuer else None,
    )


def scope(der: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(TNAUTHLIST, der)


def pem(*certificates: x509.Certificate) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)


def spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def at(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def certify(
    subject: x509.Name,
    key: PublicKey,
    extensions: Mapping[str, Extension | None],
    *,
    by: Any,
    issuer: x509.Name,
    serial: int,
    start: int,
    end: int,
    hash: Any,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(at(start))
        .not_valid_after(at(end))
    )
    for extension in extensions.values():
        if extension is not None:
            builder = builder.add_extension(*extension)
    return builder.sign(by, hash)


@dataclass
class Ca:
    """A CA with its key. `issue` makes a leaf by the profile, `under` a CA below it."""

    key: Any
    certificate: x509.Certificate

    @classmethod
    def root(cls, cn: str = "SHAKEN Test ROOT", key: Any = None, **changes: Any) -> "Ca":
        key = key or new_key()
        return cls(key, _ca(name(cn), key, key, name(cn), None, changes))

    def under(self, cn: str = "SHAKEN Test Intermediate", key: Any = None, **changes: Any) -> "Ca":
        key = key or new_key()
        above = self.certificate
        return Ca(key, _ca(name(cn), key, self.key, above.subject, above, changes))

    def issue(
        self,
        key: PublicKey,
        *,
        subject: x509.Name | None = None,
        serial: int = 1 << 120 | 7,
        start: int = NOW - 60,
        end: int = NOW + 30 * DAY,
        hash: Any = None,
        **changes: Extension | None,
    ) -> x509.Certificate:
        """A leaf; `changes` replaces extensions by name, or leaves them out (None)."""
        extensions: dict[str, Extension | None] = {
            "bc": (x509.BasicConstraints(False, None), True),
            "ku": (usage("digital_signature"), True),
            "ski": (x509.SubjectKeyIdentifier.from_public_key(key), False),
            "aki": (_aki(self.certificate), False),
            "policies": (policies(POLICY), False),
            "crldp": (x509.CRLDistributionPoints([point(CRL_URL)]), False),
            "scope": (scope(tnauthlist.spc_list(SPC)), False),
        }
        return certify(
            subject or name(f"SHAKEN {SPC} 0001"),
            key,
            extensions | changes,
            by=self.key,
            issuer=self.certificate.subject,
            serial=serial,
            start=start,
            end=end,
            hash=hash or hashes.SHA256(),
        )


def _aki(above: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    ski = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def _ca(
    subject: x509.Name,
    key: Any,
    by: Any,
    issuer: x509.Name,
    above: x509.Certificate | None,
    changes: dict[str, Any],
) -> x509.Certificate:
    dates = {"start": NOW - DAY, "end": NOW + 3650 * DAY, "hash": hashes.SHA256()}
    for word in list(dates):
        dates[word] = changes.pop(word, dates[word])
    extensions: dict[str, Extension | None] = {
        "bc": (x509.BasicConstraints(True, None), True),
        "ku": (usage("key_cert_sign"), True),
        "ski": (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        "aki": (_aki(above), False) if above else None,
    }
    serial = int.from_bytes(hashlib.sha256(subject.public_bytes()).digest()[:16], "big")
    return certify(
        subject,
        key.public_key(),
        extensions | changes,
        by=by,
        issuer=issuer,
        serial=serial,
        **dates,  # type: ignore[arg-type]
    )


@dataclass
class World:
    """One hierarchy and one key of ours."""

    root: Ca = field(default_factory=Ca.root)
    ca: Ca = field(init=False)
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def __post_init__(self) -> None:
        self.ca = self.root.under()

    @property
    def roots(self) -> tuple[str, ...]:
        return (pem(self.root.certificate),)

    def leaf(self, **changes: Any) -> x509.Certificate:
        return self.ca.issue(self.key.public_key(), **changes)

    def chain(self, **changes: Any) -> str:
        return pem(self.leaf(**changes), self.ca.certificate)

    def sign(self, digest: bytes) -> bytes:
        """As an HSM does: SHA-256 digest to r||s."""
        der = self.key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        r, s = decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def crl(
    *entries: tuple[x509.Name | None, int], key: Any = None, issuer: x509.Name = CRL_ISSUER
) -> x509.CertificateRevocationList:
    """An indirect CRL; an entry without a name says nothing of its certificate issuer."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(at(NOW))
        .next_update(at(NOW + DAY))
    )
    for who, serial in entries:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at(NOW))
        if who is not None:
            names = x509.CertificateIssuer([x509.DirectoryName(who)])
            entry = entry.add_extension(names, critical=True)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key or new_key(), hashes.SHA256())


def resigned(certificate: x509.Certificate, by: Any, before: str, after: str) -> str:
    """PEM of the certificate with octets (hex) in it replaced once, signed anew."""
    tbs = certificate.tbs_certificate_bytes
    header = 2 if tbs[1] < 0x80 else 2 + tbs[1] - 0x80
    content = tbs[header:].replace(bytes.fromhex(before), bytes.fromhex(after), 1)
    assert content != tbs[header:]
    tbs = _tlv(0x30, content)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = b"\x00" + by.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return armoured(_tlv(0x30, tbs + algorithm + _tlv(0x03, signature)))


def armoured(der: bytes) -> str:
    """PEM of octets that need not be a certificate."""
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


def _tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 128:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
