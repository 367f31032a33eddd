"""Certificates as files: reading a PEM chain, naming a key, and the CSR we send.

Not here: what a chain leads to (`path`) and whether we use it (`gate`).
RFC 8555 section 9.1 (the chain's form), RFC 2986 (CSR), ATIS-1000080 6.3.5 and 6.4.1.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Never

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from cryptography.utils import Buffer
from cryptography.x509.oid import NameOID

from kmsd import tnauthlist
from kmsd.errors import Invalid
from kmsd.settings import CsrCrldp, IssuerRules, Subject, SubjectRule

Chain = tuple[x509.Certificate, ...]

CHAIN_LIMIT = 65536
"""Characters of PEM that are looked at."""
CHAIN_CERTIFICATES = 10


def read_chain(pem: str) -> Chain:
    """The certificates of a PEM chain in their order, each readable to its last extension.

    Raises Invalid: PRIVATE_KEY_IN_CHAIN, CHAIN_TOO_LARGE, CHAIN_MALFORMED.
    """
    if "PRIVATE KEY" in pem:
        raise Invalid(
            "PRIVATE_KEY_IN_CHAIN",
            "There is a private key among the certificates.",
            next_step="Treat that key as compromised, and find out who put it there.",
            field="chain",
        )
    if len(pem) > CHAIN_LIMIT:
        raise Invalid(
            "CHAIN_TOO_LARGE", f"The chain is longer than {CHAIN_LIMIT} characters.", field="chain"
        )
    labels = _BEGIN.findall(pem)
    if not 0 < len(labels) <= CHAIN_CERTIFICATES or set(labels) != {"CERTIFICATE"}:
        raise _malformed(f"it is not 1 to {CHAIN_CERTIFICATES} certificates in PEM")
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem.encode()))
        for certificate in chain:
            _read_through(certificate)
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise _malformed(f"a certificate cannot be read ({error})") from error
    if len(chain) != len(labels):
        raise _malformed("a certificate is cut short")
    return chain


def chain_pem(chain: Chain) -> str:
    """PEM of just these certificates, as it is published."""
    return "".join(each.public_bytes(Encoding.PEM).decode("ascii") for each in chain)


def leaf_der(pem: str) -> bytes:
    """DER of the first certificate of a PEM chain. Raises Invalid, as read_chain does."""
    return read_chain(pem)[0].public_bytes(Encoding.DER)


def spki(certificate: x509.Certificate) -> bytes:
    """DER SubjectPublicKeyInfo of the certified key."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(public_key: bytes) -> str:
    """Lower-case hex of the SHA-256 of a DER SubjectPublicKeyInfo."""
    return hashlib.sha256(public_key).hexdigest()


def build_csr(
    public_key: bytes,
    sign: Callable[[bytes], bytes],
    *,
    spc: str,
    rules: IssuerRules,
    subject: Subject,
    suffix: str,
    crl_url: str = "",
    crl_issuer: str = "",
) -> bytes:
    """The CSR for a SHAKEN end entity certificate, as DER.

    public_key: DER SubjectPublicKeyInfo (P-256). sign: SHA-256 digest to 64 octets r||s.
    suffix makes the subject unique (a CA refuses the same name twice). crl_url, crl_issuer: of
    the STI-PA's CRL, the issuer as RFC 4514 text; needed only where the rules ask for them.
    Raises Invalid: KEY_NOT_P256, SPC_INVALID, SUBJECT_INVALID, CRLDP_INVALID,
    SIGNATURE_MALFORMED, and what `sign` raises.
    """
    key = _p256(public_key)
    scope = x509.UnrecognizedExtension(_TNAUTHLIST, tnauthlist.spc_list(spc))
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(spc, rules.csr_subject, subject, suffix))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_DIGITAL_SIGNATURE, critical=True)
        .add_extension(scope, critical=False)
    )
    if rules.csr_crldp is not CsrCrldp.NONE:
        with_issuer = rules.csr_crldp is CsrCrldp.URI_AND_ISSUER
        points = _distribution(crl_url, crl_issuer if with_issuer else None)
        builder = builder.add_extension(points, critical=False)
    return builder.sign(_Signer(key, sign), hashes.SHA256()).public_bytes(Encoding.DER)


_BEGIN = re.compile(r"-----BEGIN ([^\n]*?)-----")
_TNAUTHLIST = x509.ObjectIdentifier(tnauthlist.OID)
_DIGITAL_SIGNATURE = x509.KeyUsage(True, *[False] * 8)


class _Signer(ec.EllipticCurvePrivateKey):
    """A key that is elsewhere, for the one builder that wants an object of this class."""

    def __init__(
        self, public_key: ec.EllipticCurvePublicKey, sign: Callable[[bytes], bytes]
    ) -> None:
        self._public_key = public_key
        self._sign = sign

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        signature = self._sign(hashlib.sha256(data).digest())
        if len(signature) != 64:
            message = f"An ES256 signature is 64 octets r||s, this one has {len(signature)}."
            raise Invalid("SIGNATURE_MALFORMED", message)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        return encode_dss_signature(r, s)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def __copy__(self) -> "_Signer":
        return self

    def __deepcopy__(self, memo: object) -> "_Signer":
        return self

    def _never(self, *_: object, **__: object) -> Never:
        raise NotImplementedError("the private key is in the HSM and stays there")

    exchange = private_numbers = private_bytes = _never


def _p256(public_key: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise Invalid("KEY_NOT_P256", "The key to be certified is not a P-256 key.")


def _subject(spc: str, rule: SubjectRule, subject: Subject, suffix: str) -> x509.Name:
    if rule is SubjectRule.EMPTY:
        return x509.Name([])
    parts = (
        (NameOID.COUNTRY_NAME, subject.country),
        (NameOID.STATE_OR_PROVINCE_NAME, subject.state),
        (NameOID.LOCALITY_NAME, subject.locality),
        (NameOID.ORGANIZATION_NAME, subject.organization),
        # Linters want `SHAKEN <SPC>` together; what makes the name unique comes after it.
        (NameOID.COMMON_NAME, f"SHAKEN {spc} {suffix}".rstrip()),
    )
    try:
        return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])
    except ValueError as error:
        raise Invalid(
            "SUBJECT_INVALID", f"The subject for the CSR is not possible: {error}."
        ) from error


def _distribution(url: str, issuer: str | None) -> x509.CRLDistributionPoints:
    if not url or issuer == "":
        message = "The STI-CA wants the CRL's URL and issuer in the CSR, and they are not known."
        raise Invalid("CRLDP_INVALID", message)
    try:
        names: list[x509.GeneralName] | None = None
        if issuer is not None:
            names = [x509.DirectoryName(x509.Name.from_rfc4514_string(issuer))]
        point = x509.DistributionPoint(
            full_name=[x509.UniformResourceIdentifier(url)],
            relative_name=None,
            reasons=None,
            crl_issuer=names,
        )
    except ValueError as error:
        message = f"The CRL distribution point for the CSR is not possible: {error}."
        raise Invalid("CRLDP_INVALID", message) from error
    return x509.CRLDistributionPoints([point])


def _read_through(certificate: x509.Certificate) -> None:
    # cryptography parses late, and would raise wherever a part is first looked at.
    for part in ("subject", "issuer", "extensions", "signature_hash_algorithm", "serial_number"):
        getattr(certificate, part)
    certificate.public_key()


def _malformed(why: str) -> Invalid:
    return Invalid("CHAIN_MALFORMED", f"The chain is malformed: {why}.", field="chain")
