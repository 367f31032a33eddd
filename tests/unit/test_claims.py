"""From the wire to a payload: whatever bytes come, what is wrong is a typed error."""

import json
from base64 import urlsafe_b64decode
from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from kmsapi.v1 import signing_pb2 as pb

from kmsd import passport
from kmsd.claims import claims_of
from kmsd.errors import Invalid
from kmsd.passport import Base, Div, Rph, Shaken, Tn, Uri
from kmsd.rcd import Rcd

NOW = 1_800_000_000
ORIGID = "123e4567-e89b-42d3-a456-426655440000"


def message(**fields: object) -> pb.Passport:
    return pb.Passport(**({"orig_tn": "12155550112", "dest_tn": ["12155550113"]} | fields))  # type: ignore[arg-type]


def payload_of(given: pb.Passport) -> dict[str, object]:
    """What would be signed."""
    claims, _, _ = claims_of(given)
    made = passport.payload(claims, now=NOW, freshness=60, new_origid=lambda: ORIGID)
    decoded: dict[str, object] = json.loads(urlsafe_b64decode(made.segment + "=="))
    return decoded


@pytest.mark.parametrize(
    ("number", "letter"),
    [(pb.ATTESTATION_A, "A"), (pb.ATTESTATION_B, "B"), (pb.ATTESTATION_C, "C")],
)
def test_an_attestation_is_its_letter(number: "pb.Attestation.ValueType", letter: str) -> None:
    claims, ppt, attest = claims_of(message(shaken=pb.Shaken(attest=number, origid=ORIGID)))
    assert (ppt, attest, claims.type) == ("shaken", letter, Shaken(letter, ORIGID))


def test_every_type_has_its_claims() -> None:
    div = pb.Div(tn="12155550114")
    rcd = pb.Rcd(nam="ACME", apn="12155550115", rcdi={"/nam": "sha256-x"}, crn="Order")
    kinds = {
        "base": (message(base=pb.Base()), Base()),
        "div": (message(div=div), Div(Tn("12155550114"))),
        "rph": (message(rph=pb.Rph(auth=["ets.0"])), Rph(("ets.0",))),
        "rcd": (
            message(rcd=rcd),
            Rcd(
                nam="ACME",
                apn="12155550115",
                icn="",
                jcd="",
                jcl="",
                rcdi={"/nam": "sha256-x"},
                crn="Order",
            ),
        ),
    }
    for name, (given_, kind) in kinds.items():
        claims, ppt, attest = claims_of(given_)
        assert (claims.type, ppt, attest) == (kind, name, "")


def test_identities_may_be_uris() -> None:
    given_ = pb.Passport(
        orig_uri="sip:a@example.org",
        dest_uri=["sip:b@example.org"],
        iat=5,
        div=pb.Div(uri="sip:c@example.org"),
    )
    claims, _, _ = claims_of(given_)
    assert claims.orig == Uri("sip:a@example.org")
    assert claims.dest_uri == ("sip:b@example.org",)
    assert (claims.dest_tn, claims.iat) == ((), 5)
    assert claims.type == Div(Uri("sip:c@example.org"))


@pytest.mark.parametrize(
    ("given_", "reason", "field"),
    [
        (pb.Passport(base=pb.Base()), "ORIG_MISSING", "orig"),
        (message(), "TYPE_MISSING", "type"),
        (message(shaken=pb.Shaken()), "ATTEST_INVALID", "attest"),
        (message(div=pb.Div()), "DIV_MISSING", "div"),
    ],
    ids=["orig", "type", "attest", "div"],
)
def test_what_is_not_said_is_named(given_: pb.Passport, reason: str, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        claims_of(given_)
    assert (refused.value.reason, refused.value.metadata["field"]) == (reason, field)


def test_an_attestation_of_a_later_version_is_none() -> None:
    unknown = pb.Shaken.FromString(b"\x08\x2a")
    with pytest.raises(Invalid) as refused:
        claims_of(message(shaken=unknown))
    assert refused.value.reason == "ATTEST_INVALID"


@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_a_payload_or_a_typed_error(data: bytes) -> None:
    with suppress(DecodeError, Invalid):
        payload_of(pb.Passport.FromString(data))


short = st.text(max_size=8)
numbers = st.sampled_from(["12155550112", "+1 (215) 555-0112", "911", "*67", ""]) | short
uris = st.sampled_from(["sip:a@example.org", "sips:b", "tel:+1", "urn:service:sos"]) | short
jcards = st.sampled_from(['["vcard", []]', "[" * 5000, "{}", '{"a":1,"a":2}', "1e999"])
passports = st.builds(
    lambda orig, dest, iat, kind: pb.Passport(**orig, **dest, iat=iat, **kind),
    orig=st.one_of(
        st.builds(dict, orig_tn=numbers), st.builds(dict, orig_uri=uris), st.builds(dict)
    ),
    dest=st.builds(
        dict, dest_tn=st.lists(numbers, max_size=3), dest_uri=st.lists(uris, max_size=3)
    ),
    iat=st.sampled_from([0, NOW, NOW - 3600, -1, 2**63 - 1, -(2**63)]),
    kind=st.one_of(
        st.builds(
            lambda attest, origid: {"shaken": pb.Shaken(attest=attest, origid=origid)},
            attest=st.integers(-1, 4),
            origid=st.sampled_from(["", ORIGID, "x"]),
        ),
        st.builds(lambda tn: {"div": pb.Div(tn=tn)}, numbers),
        st.builds(lambda auth: {"rph": pb.Rph(auth=auth)}, st.lists(short, max_size=3)),
        st.builds(
            lambda nam, jcd, rcdi: {"rcd": pb.Rcd(nam=nam, jcd=jcd, rcdi=rcdi)},
            st.text(max_size=8),
            jcards | st.just(""),
            st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
        ),
        st.just({"base": pb.Base()}),
        st.just({}),
    ),
)


@given(passports)
def test_claims_of_any_content_give_json_or_a_typed_error(given_: pb.Passport) -> None:
    with suppress(Invalid):
        assert {"dest", "iat", "orig"} <= payload_of(given_).keys()
