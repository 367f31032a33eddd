"""PEM chains read strictly, and CSRs that OpenSSL accepts."""

import copy
import subprocess
from contextlib import suppress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from kmsd import tnauthlist
from kmsd.certs import (
    CHAIN_LIMIT,
    _Signer,
    build_csr,
    chain_pem,
    leaf_der,
    read_chain,
    spki,
    spki_sha256,
)
from kmsd.errors import Invalid
from kmsd.settings import CsrCrldp, IssuerRules, Subject, SubjectRule
from tests.unit import sti
from tests.unit.sti import CRL_URL, TNAUTHLIST, World, armoured, new_key, pem

WORLD = World()
SUBJECT = Subject(country="US", organization="Example Telephone", state="NJ", locality="Newark")
CRL_ISSUER = "O=STI-PA,C=US,CN=STI-PA CRL,ST=NJ,L=Bridgewater"


# --- chains


def test_a_chain_is_read_in_its_order_and_written_the_same() -> None:
    text = WORLD.chain()
    chain = read_chain(text)
    assert chain_pem(chain) == text
    assert leaf_der(text) == chain[0].public_bytes(Encoding.DER)
    assert spki(chain[0]) == sti.spki(WORLD.key.public_key())
    assert len(spki_sha256(spki(chain[0]))) == 64


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "CHAIN_MALFORMED"),
        ("-----BEGIN CERTIFICATE-----", "CHAIN_MALFORMED"),
        ("-----BEGIN PRIVATE KEY-----", "PRIVATE_KEY_IN_CHAIN"),
        ("x" * CHAIN_LIMIT + "-----BEGIN EC PRIVATE KEY-----", "PRIVATE_KEY_IN_CHAIN"),
        ("x" * (CHAIN_LIMIT + 1), "CHAIN_TOO_LARGE"),
        (pem(WORLD.leaf()) * 11, "CHAIN_MALFORMED"),
        (pem(WORLD.leaf()) + "-----BEGIN X509 CRL-----\n-----END X509 CRL-----", "CHAIN_MALFORMED"),
        (pem(WORLD.leaf()) + "-----BEGIN CERTIFICATE-----\nAAAA", "CHAIN_MALFORMED"),
        (armoured(b"1234"), "CHAIN_MALFORMED"),
        ("é" + armoured(b"\x30\x00"), "CHAIN_MALFORMED"),
    ],
)
def test_what_is_no_chain_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_chain(text)
    assert caught.value.reason == reason


def test_an_extension_that_cannot_be_read_is_found_at_once() -> None:
    broken = x509.UnrecognizedExtension(x509.KeyUsage.oid, b"junk")
    with pytest.raises(Invalid, match="cannot be read"):
        read_chain(WORLD.chain(ku=(broken, True)))


@given(st.text() | st.binary(max_size=200).map(armoured))
def test_arbitrary_text_is_no_chain(text: str) -> None:
    with suppress(Invalid):
        assert not read_chain(text)


# --- the CSR


def csr(rules: IssuerRules | None = None, **changes: Any) -> x509.CertificateSigningRequest:
    return x509.load_der_x509_csr(csr_der(rules, **changes))


def csr_der(rules: IssuerRules | None = None, **changes: Any) -> bytes:
    terms: dict[str, Any] = {
        "public_key": sti.spki(WORLD.key.public_key()),
        "sign": WORLD.sign,
        "spc": "709J",
        "subject": SUBJECT,
        "suffix": "0f3a",
        "crl_url": CRL_URL,
        "crl_issuer": CRL_ISSUER,
    }
    terms |= changes
    return build_csr(
        terms.pop("public_key"), terms.pop("sign"), rules=rules or IssuerRules(), **terms
    )


def extensions(request: x509.CertificateSigningRequest) -> dict[str, tuple[object, bool]]:
    return {each.oid.dotted_string: (each.value, each.critical) for each in request.extensions}


def test_a_csr_asks_for_one_spc_and_a_signing_key() -> None:
    request = csr()
    assert request.is_signature_valid
    assert request.public_key() == WORLD.key.public_key()
    assert request.subject.rfc4514_string() == (
        "CN=SHAKEN 709J 0f3a,O=Example Telephone,L=Newark,ST=NJ,C=US"
    )
    assert extensions(request) == {
        "2.5.29.19": (x509.BasicConstraints(False, None), True),
        "2.5.29.15": (sti.usage("digital_signature"), True),
        tnauthlist.OID: (
            x509.UnrecognizedExtension(TNAUTHLIST, bytes.fromhex("3008a00616043730394a")),
            False,
        ),
    }


@pytest.mark.parametrize("crldp", CsrCrldp)
@pytest.mark.parametrize("subject", SubjectRule)
def test_openssl_accepts_the_csr_for_every_issuer(crldp: CsrCrldp, subject: SubjectRule) -> None:
    der = csr_der(IssuerRules(csr_crldp=crldp, csr_subject=subject))
    command = ["openssl", "req", "-inform", "DER", "-verify", "-noout", "-text"]
    done = subprocess.run(command, input=der, capture_output=True)
    text = done.stdout + done.stderr
    assert done.returncode == 0
    assert b"verify OK" in text
    assert b"ecdsa-with-SHA256" in text
    assert (b"CRL Distribution Points" in text) is (crldp is not CsrCrldp.NONE)


def test_an_issuer_that_wants_no_subject_gets_none() -> None:
    assert list(csr(IssuerRules(csr_subject=SubjectRule.EMPTY)).subject) == []


def test_a_crl_distribution_point_is_as_the_field_has_it() -> None:
    request = csr(IssuerRules(csr_crldp=CsrCrldp.URI_AND_ISSUER))
    (point,) = request.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [name.value for name in point.full_name or ()] == [CRL_URL]
    (issuer,) = point.crl_issuer or []
    assert [each.oid for each in issuer.value] == [
        NameOID.LOCALITY_NAME,
        NameOID.STATE_OR_PROVINCE_NAME,
        NameOID.COMMON_NAME,
        NameOID.COUNTRY_NAME,
        NameOID.ORGANIZATION_NAME,
    ]
    bare = csr(IssuerRules(csr_crldp=CsrCrldp.URI))
    (point,) = bare.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.crl_issuer is None


URI = IssuerRules(csr_crldp=CsrCrldp.URI)
BOTH = IssuerRules(csr_crldp=CsrCrldp.URI_AND_ISSUER)


@pytest.mark.parametrize(
    ("reason", "rules", "changes"),
    [
        ("SPC_INVALID", None, {"spc": "709j"}),
        ("SUBJECT_INVALID", None, {"subject": Subject(country="USA")}),
        ("SUBJECT_INVALID", None, {"suffix": "x" * 64}),
        ("CRLDP_INVALID", URI, {"crl_url": ""}),
        ("CRLDP_INVALID", URI, {"crl_url": "https://é"}),
        ("CRLDP_INVALID", BOTH, {"crl_issuer": ""}),
        ("CRLDP_INVALID", BOTH, {"crl_issuer": "nobody"}),
        ("SIGNATURE_MALFORMED", None, {"sign": lambda _: b"\x30" * 70}),
        ("KEY_NOT_P256", None, {"public_key": b"junk"}),
        (
            "KEY_NOT_P256",
            None,
            {"public_key": sti.spki(ec.generate_private_key(ec.SECP384R1()).public_key())},
        ),
    ],
)
def test_a_csr_that_cannot_be_made_says_why(
    reason: str, rules: IssuerRules | None, changes: dict[str, Any]
) -> None:
    with pytest.raises(Invalid) as caught:
        csr(rules, **changes)
    assert caught.value.reason == reason


def test_the_signer_of_a_csr_does_nothing_else() -> None:
    signer = _Signer(new_key().public_key(), WORLD.sign)
    assert copy.copy(signer) is copy.deepcopy(signer) is signer
    assert (signer.curve.name, signer.key_size) == ("secp256r1", 256)
    with pytest.raises(NotImplementedError):
        signer.private_numbers()
