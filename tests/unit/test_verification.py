"""Verification as an STI-VS does it: result codes, and that nothing slips through."""

import base64
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from kmsd import passport, tnauthlist
from kmsd.errors import Invalid
from kmsd.jose import b64url
from kmsd.passport import Base, Claims, Div, Rcd, Rph, Shaken, Tn, Uri
from kmsd.verification import FAILED, PASSED, UNKNOWN, VerificationFailed, Verified, verify
from tests.unit.sti import NOW, SPC, Ca, World, crl, pem, scope

WORLD = World()
CHAIN = WORLD.chain()
X5U = "https://cr.example.org/1.pem"
ORIGID = "123e4567-e89b-12d3-a456-426655440000"
Kind = Shaken | Base | Div | Rph | Rcd


def digest(text: bytes) -> bytes:
    hashed = hashes.Hash(hashes.SHA256())
    hashed.update(text)
    return hashed.finalize()


def signed(header: str, body: str, ppt: str) -> str:
    signature = WORLD.sign(digest(passport.signing_input(header, body)))
    return passport.identity(header, body, signature, X5U, ppt)


def made(ppt: str, kind: Kind, **changes: Any) -> str:
    said: dict[str, Any] = {"orig": Tn("12155550121"), "dest_tn": ("12155550131",)}
    said |= {"dest_uri": (), "iat": 0, "type": kind}
    claims = Claims(**(said | changes))
    body = passport.payload(claims, now=NOW, freshness=60, new_origid=lambda: ORIGID)
    return signed(passport.header_segment(ppt, X5U), body.segment, ppt)


GOOD = made("shaken", Shaken("A"))


def verified(value: str, chain: str = CHAIN, **changes: Any) -> Verified:
    terms: dict[str, Any] = {"roots": WORLD.roots, "now": NOW}
    return verify(value, chain, **(terms | changes))


def failure(value: str, chain: str = CHAIN, **changes: Any) -> VerificationFailed:
    with pytest.raises(VerificationFailed) as caught:
        verified(value, chain, **changes)
    error = caught.value
    assert error.metadata == {
        "step": error.step,
        "sip_code": str(error.sip_code),
        "phrase": error.phrase,
        "verstat": error.verstat,
    }
    return error


def test_what_was_signed_is_verified() -> None:
    held = verified(GOOD, orig="+1 215 555 0121", dest="12155550131")
    assert (held.ppt, held.attest, held.origid) == ("shaken", "A", ORIGID)
    assert (held.orig, held.dest, held.iat) == ("12155550121", ("12155550131",), NOW)
    assert (held.x5u, held.spc, held.verstat) == (X5U, SPC, PASSED)
    assert held.subject == "CN=SHAKEN 1234 0001,O=Example,C=US"
    assert held.anchor == "CN=SHAKEN Test ROOT,O=Example,C=US"
    assert held.claims["origid"] == ORIGID


@pytest.mark.parametrize(
    ("ppt", "kind"),
    [
        ("base", Base()),
        ("div", Div(Uri("sip:a@b"))),
        ("rph", Rph(("ets.0",))),
        ("rcd", Rcd(nam="Änne")),
    ],
)
def test_every_type_is_verified(ppt: str, kind: Kind) -> None:
    held = verified(made(ppt, kind))
    assert (held.ppt, held.attest, held.origid) == (ppt, "", "")


def test_a_uri_can_be_who_calls_and_is_called() -> None:
    value = made("base", Base(), orig=Uri("sip:a@b"), dest_uri=("sip:c@d",))
    held = verified(value, orig="SIP:A@b", dest="sip:C@d:5060")
    assert (held.orig, held.dest) == ("sip:a@b", ("12155550131", "sip:c@d"))


def test_a_critical_tnauthlist_is_tolerated() -> None:
    chain = WORLD.chain(scope=(scope(tnauthlist.spc_list(SPC)), True))
    assert verified(GOOD, chain).spc == SPC


@pytest.mark.parametrize("skew", [-60, 60])
def test_the_edges_of_freshness_are_fresh(skew: int) -> None:
    assert verified(GOOD, now=NOW + skew)


@pytest.mark.parametrize("skew", [-61, 61])
def test_a_stale_iat_is_403(skew: int) -> None:
    error = failure(GOOD, now=NOW + skew)
    assert (error.sip_code, error.phrase, error.step) == (403, "Stale Date", "iat")
    assert error.verstat == UNKNOWN


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"orig": "12155550122"}, "orig"),
        ({"orig": "sip:a@b"}, "orig"),
        ({"dest": "12155550132"}, "dest"),
    ],
)
def test_a_passport_for_another_call_is_438(changes: dict[str, str], step: str) -> None:
    error = failure(GOOD, **changes)
    assert (error.sip_code, error.step) == (438, step)


def test_an_expectation_that_is_no_number_is_the_callers_fault() -> None:
    with pytest.raises(Invalid) as caught:
        verified(GOOD, orig="nobody")
    assert caught.value.reason == "TN_INVALID"


TOKEN = GOOD.partition(";")[0]


@pytest.mark.parametrize(
    ("value", "code", "step"),
    [
        ("", 438, "identity_malformed"),
        (f"..{TOKEN.split('.')[2]};info=<{X5U}>;ppt=shaken", 438, "compact_form"),
        (f"{TOKEN};ppt=shaken", 436, "info_invalid"),
        (f"{TOKEN};info=<http://h/a>;ppt=shaken", 436, "info_invalid"),
        (f"{TOKEN};info=<https://h/a>;ppt=shaken", 436, "info_mismatch"),
        (f"{TOKEN};info=<{X5U}>;ppt=div", 438, "ppt_mismatch"),
    ],
)
def test_a_malformed_header_has_its_code(value: str, code: int, step: str) -> None:
    error = failure(value)
    assert (error.sip_code, error.step, error.verstat) == (code, step, UNKNOWN)


def b64(value: object) -> str:
    return b64url(json.dumps(value).encode())


def with_header(**members: object) -> str:
    header = {"alg": "ES256", "ppt": "shaken", "typ": "passport", "x5u": X5U} | members
    kept = {key: value for key, value in header.items() if value is not None}
    token = signed(b64(kept), GOOD.split(".")[1], str(kept.get("ppt", "base"))).partition(";")[0]
    return f"{token};info=<{X5U}>" + (f";ppt={kept['ppt']}" if "ppt" in kept else "")


@pytest.mark.parametrize(
    ("members", "code", "step"),
    [
        ({"typ": "JWT"}, 437, "typ"),
        ({"alg": "none"}, 437, "alg"),
        ({"alg": "ES384"}, 437, "alg"),
        ({"ppt": "xyz"}, 438, "ppt"),
        ({"alg": None}, 436, "header_malformed"),
        ({"typ": None}, 436, "header_malformed"),
    ],
)
def test_a_header_of_another_kind_has_its_code(
    members: dict[str, object], code: int, step: str
) -> None:
    error = failure(with_header(**members))
    assert (error.sip_code, error.step) == (code, step)


def with_claims(ppt: str = "shaken", **members: object) -> str:
    claims: dict[str, object] = {
        "attest": "A",
        "dest": {"tn": ["1"]},
        "iat": NOW,
        "orig": {"tn": "2"},
        "origid": ORIGID,
    }
    kept = {key: value for key, value in (claims | members).items() if value is not None}
    return signed(passport.header_segment(ppt, X5U), b64(kept), ppt)


@pytest.mark.parametrize(
    ("ppt", "members"),
    [
        ("shaken", {"iat": str(NOW)}),
        ("shaken", {"iat": NOW + 0.5}),
        ("shaken", {"iat": True}),
        ("shaken", {"iat": None}),
        ("shaken", {"dest": None}),
        ("shaken", {"dest": {}}),
        ("shaken", {"dest": {"tn": []}}),
        ("shaken", {"dest": {"tn": "1"}}),
        ("shaken", {"dest": {"tn": ["1"], "x": 1}}),
        ("shaken", {"orig": {}}),
        ("shaken", {"orig": {"tn": ["1"]}}),
        ("shaken", {"orig": {"tn": "1", "uri": "sip:a@b"}}),
        ("shaken", {"attest": None}),
        ("shaken", {"attest": "D"}),
        ("shaken", {"origid": None}),
        ("shaken", {"origid": 7}),
        ("div", {}),
        ("div", {"div": {}}),
        ("rph", {}),
        ("rph", {"rph": ["ets.0"]}),
        ("rcd", {}),
    ],
)
def test_missing_and_malformed_claims_are_438(ppt: str, members: dict[str, object]) -> None:
    error = failure(with_claims(ppt, **members))
    assert (error.sip_code, error.verstat) == (438, UNKNOWN)


ONE_NUMBER = tnauthlist.encode(tnauthlist.TnAuthList((tnauthlist.One("1"),)))


@pytest.mark.parametrize(
    ("step", "chain"),
    [
        ("chain", "junk"),
        ("chain_order", pem(WORLD.leaf(), WORLD.root.certificate)),
        ("trusted_path", pem(WORLD.leaf())),
        ("trusted_path", World().chain()),
        ("end_entity", WORLD.chain(bc=(x509.BasicConstraints(True, None), True))),
        ("valid_now", WORLD.chain(end=NOW - 1)),
        ("tnauthlist", WORLD.chain(scope=None)),
        ("tnauthlist", WORLD.chain(scope=(scope(b"1234"), False))),
        ("tnauthlist", WORLD.chain(scope=(scope(ONE_NUMBER), False))),
        (
            "key",
            pem(
                WORLD.ca.issue(ec.generate_private_key(ec.SECP384R1()).public_key()),
                WORLD.ca.certificate,
            ),
        ),
    ],
)
def test_a_credential_that_is_no_good_is_437(step: str, chain: str) -> None:
    error = failure(GOOD, chain)
    assert (error.step, error.sip_code, error.verstat) == (step, 437, FAILED)


def test_a_certificate_that_ended_before_iat_is_437() -> None:
    chain = WORLD.chain(end=NOW + 10)
    late = made("shaken", Shaken("A"), iat=NOW + 50)
    assert failure(late, chain).step == "valid_at_iat"


def test_a_revoked_certificate_is_437() -> None:
    listed = crl((WORLD.ca.certificate.subject, WORLD.leaf().serial_number))
    error = failure(GOOD, crl=listed.public_bytes(Encoding.DER))
    assert (error.step, error.sip_code) == ("revoked", 437)


def test_another_key_does_not_verify() -> None:
    other = pem(WORLD.ca.issue(World().key.public_key()), WORLD.ca.certificate)
    error = failure(GOOD, other)
    assert (error.step, error.sip_code, error.verstat) == ("signature", 438, FAILED)


def test_a_foreign_root_of_the_same_name_is_not_trusted() -> None:
    assert failure(GOOD, roots=(pem(Ca.root().certificate),)).step == "trusted_path"


def with_signature(signature: bytes) -> str:
    head = TOKEN.rpartition(".")[0]
    return f"{head}.{b64url(signature)};info=<{X5U}>;ppt=shaken"


def test_a_der_signature_is_refused() -> None:
    head = TOKEN.rpartition(".")[0]
    der = WORLD.key.sign(head.encode(), ec.ECDSA(hashes.SHA256()))
    error = failure(with_signature(der))
    assert (error.step, error.sip_code, error.verstat) == ("signature", 438, FAILED)


@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64, bytes(63), bytes(65)])
def test_a_signature_of_odd_numbers_is_refused(signature: bytes) -> None:
    assert failure(with_signature(signature)).step == "signature"


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from("ABCabc019-_."))
def test_a_token_with_one_other_character_is_refused(place: int, character: str) -> None:
    changed = TOKEN[:place] + character + TOKEN[place + 1 :]
    if changed != TOKEN:
        failure(f"{changed};info=<{X5U}>;ppt=shaken")


@given(st.binary(max_size=60), st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_arbitrary_claims_never_verify(raw: bytes, value: object) -> None:
    header = passport.header_segment("shaken", X5U)
    for body in (base64.urlsafe_b64encode(raw).decode().rstrip("="), b64({"orig": value})):
        failure(signed(header, body, "shaken"))
