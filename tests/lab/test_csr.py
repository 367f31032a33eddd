"""CSRs the STI-CA refuses, each for one reason; every refusal leaves the order ready."""

import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kmsd.lab import Lab
from tests.lab.parties import DER, TN_AUTH_LIST, Acme, Subscriber, new_key, problem

C, ORG, CN = NameOID.COUNTRY_NAME, NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME

Names = list[tuple[x509.ObjectIdentifier, str]]
Extensions = list[tuple[x509.ExtensionType, bool]]

TN = (x509.UnrecognizedExtension(TN_AUTH_LIST, DER["1234"]), False)


def crldp(url: str) -> tuple[x509.ExtensionType, bool]:
    names = [x509.UniformResourceIdentifier(url)]
    return x509.CRLDistributionPoints([x509.DistributionPoint(names, None, None, None)]), False


def build(
    names: Names,
    extensions: Extensions,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    digest: hashes.SHA256 | hashes.SHA384 | None = None,
) -> bytes:
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    made = builder.sign(key or new_key(), digest or hashes.SHA256())
    return made.public_bytes(Encoding.DER)


def names(*changes: tuple[x509.ObjectIdentifier, str]) -> Names:
    good = {C: "US", ORG: "Voice of Tests", CN: f"SHAKEN 1234 {os.urandom(4).hex()}"} | dict(
        changes
    )
    return [(oid, value) for oid, value in good.items() if value]


@pytest.fixture
def ready(acme: Acme, subscriber: Subscriber) -> str:
    """URL of an order that is ready."""
    placed = acme.order()
    acme.answer(placed.json(), subscriber.token(acme.key))
    return placed.headers["Location"]


EKU = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)

REFUSED = {
    "not on P-256": lambda: build(names(), [TN], ec.generate_private_key(ec.SECP384R1())),
    "not on P-256.": lambda: build(names(), [TN], rsa.generate_private_key(65537, 2048)),
    "ecdsa-with-SHA256": lambda: build(names(), [TN], digest=hashes.SHA384()),
    "extension 2.5.29.37": lambda: build(names(), [TN, EKU]),
    "TNAuthList is critical": lambda: build(names(), [(TN[0], True)]),
    "distribution point": lambda: build(names(), [TN, crldp("https://localhost/other")]),
    "exactly one C.": lambda: build(names((C, "")), [TN]),
    "exactly one O.": lambda: build([*names(), (ORG, "Twice")], [TN]),
    "no ISO 3166": lambda: build(names((C, "us")), [TN]),
    "'SHAKEN 1234'": lambda: build(names((CN, "SHAKEN 12345")), [TN]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_csr_is_refused_for_one_reason(acme: Acme, ready: str, words: str) -> None:
    order = acme.post(ready, None).json()
    refused = acme.finalize(order, REFUSED[words]())
    assert problem(refused) == "badCSR"
    assert words in refused.json()["detail"]
    assert acme.post(ready, None).json()["status"] == "ready"


@pytest.mark.parametrize("body", [{}, {"csr": 5}, {"csr": "!"}, {"csr": "MAA="}])
def test_a_finalize_without_a_csr_is_malformed(
    acme: Acme, ready: str, body: dict[str, object]
) -> None:
    url = acme.post(ready, None).json()["finalize"]
    assert problem(acme.post(url, body)) == "malformed"


def test_a_csr_may_ask_for_what_the_profile_has_anyway(lab: Lab, acme: Acme, ready: str) -> None:
    key = new_key()
    wanted: Extensions = [
        TN,
        crldp(lab.facts.crl_url),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    order = acme.post(ready, None).json()
    assert acme.finalize(order, build(names(), wanted, key)).json()["status"] == "valid"
