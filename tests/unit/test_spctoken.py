"""SPC tokens: each rule broken alone is named, and nothing else makes a token usable."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1
from hypothesis import given, settings
from hypothesis import strategies as st

from kmsd import spctoken
from kmsd.errors import PeerRefused
from kmsd.trust import Broken, Certificates, read_jws
from tests.pki import DAY, NOW, Signer, certify, sign_jws

X5U = "https://pa.example/certificateId_1.crt"
FINGERPRINT = "SHA256 " + ":".join(["AB"] * 32)
WANTED = spctoken.Wanted("MAigBhYEMTIzNA", FINGERPRINT, 180)
HEADER = {"alg": "ES256", "typ": "JWT", "x5u": X5U}

ROOT = certify("STI-PA Root", ca=True)
INTERMEDIATE = certify("STI-PA Intermediate", ROOT, ca=True)
SIGNER = certify("STI-PA Tokens", INTERMEDIATE)
CHAIN = (SIGNER.certificate, INTERMEDIATE.certificate)


def claims(**atc: Any) -> dict[str, Any]:
    scope = {
        "tktype": "TNAuthList",
        "tkvalue": "MAigBhYEMTIzNA==",
        "ca": False,
        "fingerprint": FINGERPRINT,
    }
    return {"exp": NOW + 3600, "jti": "id-1", "atc": scope | atc}


def check(
    payload: Any = None,
    *,
    header: dict[str, Any] | None = None,
    by: Signer = SIGNER,
    chain: Certificates = CHAIN,
    roots: Certificates = (ROOT.certificate,),
    now: int = NOW,
) -> int:
    jwt = sign_jws(by, header or HEADER, claims() if payload is None else payload)
    return spctoken.check(spctoken.read(jwt), chain, roots, WANTED, now)


def rule(**case: Any) -> str:
    with pytest.raises(PeerRefused) as caught:
        check(**case)
    assert caught.value.reason == "SPC_TOKEN_REJECTED"
    assert caught.value.peer == "sti-pa"
    return caught.value.metadata["rule"]


def test_a_token_for_what_was_asked_is_usable_until_it_expires() -> None:
    assert check() == NOW + 3600


def test_both_alphabets_of_the_tkvalue_are_one_list() -> None:
    assert check(claims(tkvalue="MAigBhYEMTIzNA")) == check(claims(tkvalue="MAigBhYEMTIzNA=="))


def test_an_absent_ca_means_end_entity() -> None:
    payload = claims()
    del payload["atc"]["ca"]
    assert check(payload) == NOW + 3600


def test_the_pinned_root_itself_may_be_named_again_in_the_served_chain() -> None:
    assert check(chain=(*CHAIN, ROOT.certificate)) == NOW + 3600


@pytest.mark.parametrize(
    ("spoilt", "broken"),
    [
        ({"tktype": "TnAuthList"}, "tktype"),
        ({"tktype": "JWTClaimConstraints"}, "tktype"),
        ({"tkvalue": "MAigBhYENzA5Sg"}, "tkvalue"),
        ({"tkvalue": "1234"}, "tkvalue"),
        ({"tkvalue": ""}, "tkvalue"),
        ({"fingerprint": FINGERPRINT.lower()}, "fingerprint"),
        ({"fingerprint": ""}, "fingerprint"),
        ({"ca": True}, "ca"),
        ({"ca": "false"}, "claims"),
        ({"tktype": None}, "claims"),
    ],
)
def test_a_token_for_something_else_is_not_used(spoilt: dict[str, Any], broken: str) -> None:
    assert rule(payload=claims(**spoilt)) == broken


def test_the_spelling_of_rfc_9447s_example_is_explained() -> None:
    with pytest.raises(PeerRefused, match="RFC 9447's example"):
        check(claims(tktype="TnAuthList"))


@pytest.mark.parametrize(
    ("spoilt", "broken"),
    [
        ({"jti": ""}, "jti"),
        ({"jti": 7}, "claims"),
        ({"exp": NOW + 179}, "exp"),
        ({"exp": NOW - 1}, "exp"),
        ({"exp": str(NOW + 3600)}, "claims"),
        ({"exp": None}, "claims"),
        ({"atc": []}, "claims"),
    ],
)
def test_a_token_without_life_or_identity_is_not_used(spoilt: Any, broken: str) -> None:
    assert rule(payload=claims() | spoilt) == broken


def test_a_token_with_exactly_enough_life_is_used() -> None:
    assert check(claims() | {"exp": NOW + 180}) == NOW + 180


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 9000])
def test_a_payload_that_is_no_claims_is_refused(payload: bytes) -> None:
    assert rule(payload=payload) in ("claims", "segments")


@pytest.mark.parametrize(
    ("spoilt", "broken"),
    [
        ({"alg": "none"}, "alg"),
        ({"alg": "HS256"}, "alg"),
        ({"alg": "ES384"}, "alg"),
        ({"alg": 1}, "header"),
        ({"typ": ""}, "typ"),
        ({"typ": "passport"}, "typ"),
        ({"x5u": ""}, "x5u"),
        ({"x5u": "http://pa.example/1.crt"}, "x5u"),
        ({"x5u": "file:///etc/passwd"}, "x5u"),
        ({"crit": ["exp"]}, "header"),
        ({"b64": False}, "header"),
        ({"more": "x" * 5000}, "header"),
    ],
)
def test_a_header_that_is_not_the_sti_pas_is_refused(spoilt: Any, broken: str) -> None:
    assert rule(header=HEADER | spoilt) == broken


def test_unknown_header_members_do_no_harm() -> None:
    assert check(header=HEADER | {"kid": "7", "ppt": "x"}) == NOW + 3600


@pytest.mark.parametrize(
    ("case", "broken"),
    [
        ({"by": certify("stranger")}, "signature"),
        ({"roots": (certify("STI-PA Root", ca=True).certificate,)}, "chain"),
        ({"chain": (SIGNER.certificate,)}, "chain"),
        ({"chain": CHAIN[::-1]}, "chain"),
        ({"now": NOW + 31 * DAY}, "chain"),
        ({"now": NOW - 2 * DAY}, "chain"),
    ],
)
def test_a_token_that_is_not_the_sti_pas_is_refused(case: dict[str, Any], broken: str) -> None:
    assert rule(**case) == broken


def test_a_root_that_comes_with_the_token_is_never_trusted() -> None:
    root = certify("STI-PA Root", ca=True)
    signer = certify("STI-PA Tokens", root)
    assert rule(by=signer, chain=(signer.certificate, root.certificate)) == "chain"


@pytest.mark.parametrize(
    "signer",
    [
        certify("not for signing", INTERMEDIATE, ca=True),
        certify("expired", INTERMEDIATE, until=NOW - 1),
        certify("not yet", INTERMEDIATE, since=NOW + 1),
        certify("odd", INTERMEDIATE, critical="1.2.3.4"),
    ],
    ids=["keyUsage", "expired", "not yet", "critical extension"],
)
def test_a_signer_that_may_not_sign_makes_no_token(signer: Signer) -> None:
    assert rule(by=signer, chain=(signer.certificate, *CHAIN[1:])) == "chain"


def test_a_certificate_that_is_no_ca_makes_no_signers() -> None:
    leaf = certify("leaf", ROOT)
    signer = certify("signer", leaf)
    assert rule(by=signer, chain=(signer.certificate, leaf.certificate)) == "chain"


def test_a_signer_on_another_curve_is_refused() -> None:
    signer = certify("signer", ROOT, curve=SECP384R1())
    assert rule(by=signer, chain=(signer.certificate,)) == "signature"


def test_no_bit_of_a_token_can_be_changed() -> None:
    jwt = sign_jws(SIGNER, HEADER, claims())
    for at in range(0, len(jwt), 7):
        other = "A" if jwt[at] != "A" else "B"
        with pytest.raises(PeerRefused) as caught:
            spctoken.check(
                spctoken.read(jwt[:at] + other + jwt[at + 1 :]),
                CHAIN,
                (ROOT.certificate,),
                WANTED,
                NOW,
            )
        assert caught.value.reason == "SPC_TOKEN_REJECTED"


@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
@settings(max_examples=200)
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(Broken):
        read_jws(text, 300)


@given(st.recursive(st.none() | st.text() | st.integers(), st.lists, max_leaves=5))
def test_no_json_does_more_as_a_header_than_be_refused(header: Any) -> None:
    with pytest.raises(Broken):
        read_jws(sign_jws(SIGNER, header, claims()), 10_000)


def test_a_token_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(PeerRefused) as caught:
        spctoken.read("a" * 16_385)
    assert caught.value.metadata["rule"] == "size"


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("a.b.c\n", "a.b.c"),
        ('{"token": "a.b.c"}', "a.b.c"),
        ('{"status": "success", "token": "a.b.c", "crl": "https://x/crl"}', "a.b.c"),
        ('{"status": "error", "message": "no"}', ""),
    ],
)
def test_an_answer_is_json_or_the_token_alone(text: str, token: str) -> None:
    answer = spctoken.read_answer(text)
    assert answer is not None
    assert answer.token == token


@pytest.mark.parametrize("text", ["", "no", "{", "[]", '{"token": 1}', "{" * 100_000])
def test_what_is_no_answer_is_none(text: str) -> None:
    assert spctoken.read_answer(text) is None


def test_a_token_is_never_shown() -> None:
    token = spctoken.SpcToken("a.secret.c", NOW)
    answer = spctoken.Answer("a.secret.c", "success")
    for shown in (repr(token), str(token), repr(token.__rich_repr__()), f"{[answer]}"):
        assert "secret" not in shown
    assert "secret" not in repr(answer.__rich_repr__())
