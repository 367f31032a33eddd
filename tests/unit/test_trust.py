"""The STI-CA list and the CRL: each rule broken alone is named; neither ever goes back."""

from contextlib import nullcontext
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import given
from hypothesis import strategies as st

from kmsd import crl, trust
from kmsd.errors import Misconfigured, PeerRefused
from kmsd.model import RevocationList, TrustList
from tests.pki import (
    DAY,
    NOW,
    Signer,
    certify,
    key_usage,
    make_crl,
    remade,
    sign_jws,
    with_two_key_usages,
    with_unknown_key,
)

ROOT = certify("STI-PA Root", ca=True, usage=key_usage(signs=True, ca=True, crl=True))
ROOTS = (ROOT.certificate,)
SIGNER = certify("STI-PA List", ROOT)
CA_1 = certify("SHAKEN ROOT 1", ca=True)
CA_2 = certify("SHAKEN ROOT 2", ca=True)
HEADER = {"alg": "ES256", "x5u": "https://pa.example/list.crt"}
CRL_URL = "https://pa.example/crl"
CRL_SIGNER = certify("STI-PA CRL", ROOT, usage=key_usage(crl=True))


def listed(**other: Any) -> dict[str, Any]:
    entry = {"version": "1", "sequence": 5, "exp": NOW + DAY, "trustList": [CA_1.pem, CA_2.pem]}
    return entry | other


def last_list(sequence: int) -> TrustList:
    return TrustList("us", sequence, NOW, NOW - 1, (CA_1.pem,))


def accept_list(
    payload: Any, *, by: Signer = SIGNER, last: TrustList | None = None, now: int = NOW
) -> TrustList:
    signed = trust.read_jws(sign_jws(by, HEADER, payload), 100_000)
    chain = (by.certificate,)
    return trust.accept_list(signed, chain, ROOTS, authority="us", last=last, now=now)


def test_a_list_gives_its_members_once_each() -> None:
    accepted = accept_list(listed(trustList=[CA_1.pem, CA_2.pem, CA_1.pem]))
    assert accepted == TrustList("us", 5, NOW + DAY, NOW, (CA_1.pem, CA_2.pem))


def test_a_list_far_larger_than_a_jose_librarys_limits_is_read() -> None:
    payload = listed(padding="x" * 200_000)
    signed = trust.read_jws(sign_jws(SIGNER, HEADER, payload), 4_000_000)
    chain = (SIGNER.certificate,)
    accepted = trust.accept_list(signed, chain, ROOTS, authority="us", last=None, now=NOW)
    assert accepted.sequence == 5


def test_the_pinned_root_may_sign_a_list_itself() -> None:
    assert accept_list(listed(), by=ROOT).sequence == 5


@pytest.mark.parametrize("sequence", [1, 5])
def test_the_same_list_or_a_newer_one_is_accepted(sequence: int) -> None:
    assert accept_list(listed(), last=last_list(sequence)).sequence == 5


def test_an_older_list_than_the_last_is_refused() -> None:
    with pytest.raises(PeerRefused) as caught:
        accept_list(listed(), last=last_list(6))
    assert caught.value.reason == "TRUST_LIST_ROLLBACK"


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_a_sequence_never_goes_back(had: int, got: int) -> None:
    refused = pytest.raises(PeerRefused, match="older than")
    with refused if got < had else nullcontext():
        assert accept_list(listed(sequence=got), last=last_list(had)).sequence == got


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (listed(exp=NOW), "exp"),
        (listed(exp=str(NOW + DAY)), "claims"),
        (listed(sequence="5"), "claims"),
        (listed(sequence=None), "claims"),
        (listed(sequence=-1), "claims"),
        (listed(sequence=2**63), "claims"),
        (listed(exp=10**12), "claims"),
        (listed(trustList=[]), "members"),
        (listed(trustList=["no certificate"]), "members"),
        (listed(trustList=[CA_1.pem, SIGNER.pem]), "members"),
        (listed(trustList=[CA_1.pem[:200]]), "members"),
        (listed(trustList=[with_two_key_usages(CA_1).pem]), "members"),
        (listed(trustList=CA_1.pem), "claims"),
        (b"\xff", "claims"),
        (b"{}", "claims"),
    ],
)
def test_a_list_that_breaks_one_rule_is_refused_whole(payload: Any, rule: str) -> None:
    with pytest.raises(PeerRefused) as caught:
        accept_list(payload)
    assert (caught.value.reason, caught.value.metadata["rule"]) == ("TRUST_LIST_REJECTED", rule)


def test_a_list_signed_by_a_stranger_is_refused() -> None:
    with pytest.raises(PeerRefused) as caught:
        accept_list(listed(), by=certify("STI-PA List"))
    assert caught.value.metadata["rule"] == "chain"


def test_a_signer_may_leave_its_key_usage_unsaid() -> None:
    assert accept_list(listed(), by=certify("STI-PA List", ROOT, usage=None)).sequence == 5


def test_a_signer_with_two_key_usages_is_refused() -> None:
    with pytest.raises(PeerRefused) as caught:
        accept_list(listed(), by=with_two_key_usages(SIGNER))
    assert caught.value.metadata["rule"] == "chain"


def test_a_header_that_only_the_verifying_library_dislikes_is_refused() -> None:
    signed = trust.read_jws(sign_jws(SIGNER, HEADER | {"x5c": 5}, listed()), 100_000)
    with pytest.raises(trust.Broken) as caught:
        trust.payload(signed, (SIGNER.certificate,), ROOTS, NOW)
    assert caught.value.rule == "signature"


def accept_crl(
    found: x509.CertificateRevocationList,
    *,
    served: tuple[x509.Certificate, ...] = (CRL_SIGNER.certificate,),
    last: RevocationList | None = None,
    now: int = NOW,
) -> RevocationList:
    return crl.accept(found, served, ROOTS, authority="us", url=CRL_URL, last=last, now=now)


def crl_rule(found: x509.CertificateRevocationList, **case: Any) -> str:
    with pytest.raises(PeerRefused) as caught:
        accept_crl(found, **case)
    assert caught.value.reason == "CRL_REJECTED"
    return caught.value.metadata["rule"]


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_crl_is_read_in_pem_and_der(encoding: Encoding) -> None:
    made = make_crl(CRL_SIGNER, url=CRL_URL, revoked=(99,))
    accepted = accept_crl(crl.read(made.public_bytes(encoding)))
    assert (accepted.number, accepted.next_update, accepted.fetched_at) == ("7", NOW + DAY, NOW)
    assert accepted.der == made.public_bytes(Encoding.DER)


@pytest.mark.parametrize("data", [b"", b"no crl", b"-----BEGIN X509 CRL-----\nAA", b"\x30\x80"])
def test_what_is_no_crl_is_refused(data: bytes) -> None:
    with pytest.raises(PeerRefused) as caught:
        crl.read(data)
    assert caught.value.metadata["rule"] == "encoding"


def test_a_crl_may_leave_its_url_unsaid() -> None:
    assert accept_crl(make_crl(CRL_SIGNER)).number == "7"


def test_the_pinned_root_may_sign_the_crl_itself() -> None:
    assert accept_crl(make_crl(ROOT), served=()).number == "7"


def test_a_ca_below_the_root_may_sign_the_crl() -> None:
    signer = certify("STI-PA CA", ROOT, ca=True)
    assert accept_crl(make_crl(signer), served=(signer.certificate,)).number == "7"


def test_a_crl_number_may_have_twenty_octets() -> None:
    assert accept_crl(make_crl(CRL_SIGNER, number=2**158)).number == str(2**158)


KEY_COMPROMISE = x509.ReasonFlags.key_compromise


def partial(
    *,
    ca_certs: bool = False,
    attribute_certs: bool = False,
    reasons: frozenset[x509.ReasonFlags] | None = None,
) -> x509.IssuingDistributionPoint:
    """Of an indirect CRL that leaves something out."""
    return x509.IssuingDistributionPoint(
        None, None, False, ca_certs, reasons, True, attribute_certs
    )


def test_a_crl_about_end_entities_alone_is_enough() -> None:
    point = x509.IssuingDistributionPoint(None, None, True, False, None, True, False)
    assert accept_crl(make_crl(CRL_SIGNER, point=point)).number == "7"


@pytest.mark.parametrize(
    ("found", "rule"),
    [
        (make_crl(CRL_SIGNER, url="https://other.example/crl"), "idp"),
        (make_crl(CRL_SIGNER, number=None), "number"),
        (make_crl(CRL_SIGNER, number=2**160), "number"),
        (make_crl(CRL_SIGNER, until=NOW), "nextUpdate"),
        (make_crl(CRL_SIGNER, since=NOW + 301, until=NOW + DAY), "thisUpdate"),
        (make_crl(CRL_SIGNER, delta=True), "extension"),
        (make_crl(CRL_SIGNER, point=partial(ca_certs=True)), "scope"),
        (make_crl(CRL_SIGNER, point=partial(attribute_certs=True)), "scope"),
        (make_crl(CRL_SIGNER, point=partial(reasons=frozenset({KEY_COMPROMISE}))), "scope"),
        (make_crl(CRL_SIGNER, revoked=[1], whose=x509.DNSName("ca")), "entries"),
        (make_crl(certify("STI-PA CRL", ROOT)), "signature"),
        (make_crl(certify("somebody else", ROOT)), "signer"),
    ],
)
def test_a_crl_that_breaks_one_rule_is_refused(
    found: x509.CertificateRevocationList, rule: str
) -> None:
    assert crl_rule(found) == rule


def test_a_crl_without_an_end_is_refused() -> None:
    assert crl_rule(remade(make_crl(CRL_SIGNER), CRL_SIGNER, next_update=False)) == "nextUpdate"


def test_a_crl_with_two_numbers_is_refused() -> None:
    assert crl_rule(remade(make_crl(CRL_SIGNER), CRL_SIGNER, twice=True)) == "encoding"


def test_a_crl_whose_signers_key_cannot_be_read_is_refused() -> None:
    unreadable = with_unknown_key(CRL_SIGNER)
    assert crl_rule(make_crl(CRL_SIGNER), served=(unreadable,)) == "signature"


def test_a_crl_is_not_signed_by_whoever_may_not() -> None:
    signer = certify("STI-PA CRL", ROOT, usage=key_usage(signs=True))
    assert crl_rule(make_crl(signer), served=(signer.certificate,)) == "signature"


def test_a_crl_signer_without_a_path_to_the_root_is_refused() -> None:
    root = certify("STI-PA Root", ca=True)
    signer = certify("STI-PA CRL", root, usage=key_usage(crl=True))
    served = (signer.certificate, root.certificate)
    assert crl_rule(make_crl(signer), served=served) == "chain"


def test_a_crl_number_never_goes_back() -> None:
    made = make_crl(CRL_SIGNER, number=8)
    last = accept_crl(made)
    with pytest.raises(PeerRefused) as caught:
        accept_crl(make_crl(CRL_SIGNER, number=7), last=last)
    assert caught.value.reason == "CRL_ROLLBACK"
    assert accept_crl(made, last=last) == last


def test_the_crl_says_where_its_signer_is() -> None:
    assert crl.signer_urls(make_crl(ROOT, aia="https://x/1.crt")) == ("https://x/1.crt",)
    assert crl.signer_urls(make_crl(ROOT)) == ()


@pytest.mark.parametrize(
    "data",
    [
        ROOT.certificate.public_bytes(Encoding.PEM),
        ROOT.certificate.public_bytes(Encoding.DER),
        b"comment\n" + ROOT.certificate.public_bytes(Encoding.PEM),
        pkcs7.serialize_certificates([ROOT.certificate], Encoding.DER),
        pkcs7.serialize_certificates([ROOT.certificate], Encoding.PEM),
    ],
    ids=["PEM", "DER", "PEM with a comment", "PKCS#7 DER", "PKCS#7 PEM"],
)
def test_certificates_come_in_all_their_encodings(data: bytes) -> None:
    assert trust.certificates(data) == ROOTS


@pytest.mark.parametrize(
    "data", [b"", b"x", b"-----BEGIN CERTIFICATE-----", ROOT.pem.encode() * 11]
)
def test_what_is_no_chain_is_refused(data: bytes) -> None:
    with pytest.raises(trust.Broken):
        trust.certificates(data)


@given(st.binary(max_size=200))
def test_no_octets_do_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(trust.Broken):
        trust.certificates(data)
    with pytest.raises(PeerRefused):
        crl.read(data)


def test_a_pinned_root_that_cannot_be_read_is_the_operators_to_correct() -> None:
    assert trust.pinned(ROOT.pem) == ROOTS
    with pytest.raises(Misconfigured, match="Put the STI-PA's root"):
        trust.pinned("nothing")
