"""PASSporTs from claims, held against json.dumps and the published vectors."""

import base64
import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from kmsd.errors import Invalid
from kmsd.identity import IDENTITY_LIMIT, parse
from kmsd.passport import (
    DEST_LIMIT,
    RPH_LIMIT,
    Base,
    Claims,
    Div,
    Payload,
    Rcd,
    Rph,
    Shaken,
    Tn,
    Uri,
    canonical_tn,
    canonical_uri,
    header_segment,
    identity,
    payload,
    signing_input,
)
from kmsd.rcd import DIGEST_LIMIT, JCARD_LIMIT, TEXT_LIMIT

NOW = 1_443_208_345
ORIGID = "123e4567-e89b-12d3-a456-426655440000"
X5U = "https://cert.example.org/passport.cer"
ORIG = Tn("12155550121")
DEST = ("12155550131",)
Kind = Shaken | Base | Div | Rph | Rcd


def made(kind: Kind, iat: int = 0, **changes: Any) -> Payload:
    fields: dict[str, Any] = {"orig": ORIG, "dest_tn": DEST, "dest_uri": ()} | changes
    claims = Claims(iat=iat, type=kind, **fields)
    return payload(claims, now=NOW, freshness=60, new_origid=lambda: ORIGID)


def said(kind: Kind, iat: int = 0, **changes: Any) -> Any:
    return json.loads(made(kind, iat, **changes).json)


def refusal(kind: Kind, iat: int = 0, **changes: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        made(kind, iat, **changes)
    return caught.value


# --- published vectors


def test_shaken_segments_are_those_of_rfc_8588_corrected() -> None:
    assert header_segment("shaken", X5U) == (
        "eyJhbGciOiJFUzI1NiIsInBwdCI6InNoYWtlbiIsInR5cCI6InBhc3Nwb3J0IiwieDV1IjoiaHR0cHM6Ly9jZXJ0"
        "LmV4YW1wbGUub3JnL3Bhc3Nwb3J0LmNlciJ9"
    )
    assert made(Shaken("A", ORIGID)).segment == (
        "eyJhdHRlc3QiOiJBIiwiZGVzdCI6eyJ0biI6WyIxMjE1NTU1MDEzMSJdfSwiaWF0IjoxNDQzMjA4MzQ1LCJvcmln"
        "Ijp7InRuIjoiMTIxNTU1NTAxMjEifSwib3JpZ2lkIjoiMTIzZTQ1NjctZTg5Yi0xMmQzLWE0NTYtNDI2NjU1NDQw"
        "MDAwIn0"
    )


RFC_8225_HEADER = (
    "eyJhbGciOiJFUzI1NiIsInR5cCI6InBhc3Nwb3J0IiwieDV1IjoiaHR0cHM6Ly9jZXJ0LmV4YW1wbGUub3JnL3Bhc3Nw"
    "b3J0LmNlciJ9"
)
RFC_8225_PAYLOAD = (
    "eyJkZXN0Ijp7InVyaSI6WyJzaXA6YWxpY2VAZXhhbXBsZS5jb20iXX0sImlhdCI6MTQ3MTM3NTQxOCwib3JpZyI6eyJ0"
    "biI6IjEyMTU1NTUxMjEyIn19"
)
RFC_8225_SIGNATURE = (
    "VLBCIVDCaeK6M4hLJb6SHQvacAQVvoiiEOWQ_iUkqk79UD81fHQ0E1b3_GluIkba7UWYRM47ZbNFdOJquE35cw"
)
RFC_8225_PRIVATE = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgi7q2TZvN9VDFg8VyqCP06bETrR2v8MRvr89rn4i+UAah"
    "RANCAAQWfaj1HUETpoNCrOtp9KA8o0V79IuWARKt9C1cFPkyd3FBP4SeiNZxQhDrD0tdBHls3/wFe8++K2FrPyQF9vuh"
)
RFC_8225_PUBLIC = (
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE8HNbQd/TmvCKwPKHkMF9fScavGeH78YTU8qLS8I5HLHSSmlATLcslQMh"
    "NC/OhlWBYC626nIlo7XeebYS7Sb37g=="
)
RFC_8946_TOKEN = (
    "eyJhbGciOiJFUzI1NiIsInBwdCI6ImRpdiIsInR5cCI6InBhc3Nwb3J0IiwieDV1IjoiaHR0cHM6Ly93d3cuZXhhbXBs"
    "ZS5jb20vY2VydC5jZXIifQ.eyJkZXN0Ijp7InRuIjpbIjEyMTU1NTUxMjE0Il19LCJkaXYiOnsidG4iOiIxMjE1NTU1N"
    "TEyMTMifSwiaWF0IjoxNDQzMjA4MzQ1LCJvcmlnIjp7InRuIjoiMTIxNTU1NTEyMTIifX0.xBHWipDEEJ8a6TsdX6xUX"
    "AnblsFiGUiAxwLiv0HLC9IICj6eG9jQd6WzeSSjHRBwxmChHhVIiMTSqIlk3yCNkg"
)
RFC_8946_PUBLIC = (
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEmzGM1VsO+3IqbMF54rQMaYKQftO4hUYm9wv5wutLgEd9FsiTy3+4+Wa2"
    "O7pffOXPC0QzO+yD8hGEXGP/2mZo6w=="
)
RFC_7515_TOKEN = (
    "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmN"
    "vbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQ"
    "xfKTUJqPP3-Kg6NU1Q"
)
RFC_7515_POINT = (
    "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
)


def octets(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def public(der: str) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(base64.b64decode(der))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def verifies(key: ec.EllipticCurvePublicKey, token: str) -> bool:
    header, body, signature = token.split(".")
    r, s = octets(signature)[:32], octets(signature)[32:]
    der = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    try:
        key.verify(der, signing_input(header, body), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def test_base_segments_are_those_of_rfc_8225_appendix_a() -> None:
    iat = 1_471_375_418
    claims = Claims(Tn("+1 (215) 555-1212"), (), ("sip:Alice@Example.com",), iat, Base())
    whole = payload(claims, now=iat, freshness=60, new_origid=str)
    assert header_segment("base", X5U) == RFC_8225_HEADER
    assert whole.segment == RFC_8225_PAYLOAD
    assert whole.origid == ""


def test_the_signature_printed_in_rfc_8225_is_unsound_under_both_of_its_keys() -> None:
    token = f"{RFC_8225_HEADER}.{RFC_8225_PAYLOAD}.{RFC_8225_SIGNATURE}"
    private = load_der_private_key(base64.b64decode(RFC_8225_PRIVATE), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert len(octets(RFC_8225_SIGNATURE)) == 64
    assert not verifies(public(RFC_8225_PUBLIC), token)
    assert not verifies(private.public_key(), token)
    assert private.public_key() != public(RFC_8225_PUBLIC)


def test_the_token_of_rfc_7515_a3_verifies() -> None:
    x, y = (int.from_bytes(octets(value)) for value in RFC_7515_POINT)
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    assert verifies(key, RFC_7515_TOKEN)


def test_the_div_token_of_rfc_8946_verifies_and_is_made_again() -> None:
    x5u = "https://www.example.com/cert.cer"
    claims = Claims(Tn("12155551212"), ("12155551214",), (), NOW, Div(Tn("121555551213")))
    whole = payload(claims, now=NOW + 86_400, freshness=60, new_origid=str)
    header, body, signature = RFC_8946_TOKEN.split(".")
    assert verifies(public(RFC_8946_PUBLIC), RFC_8946_TOKEN)
    assert (header_segment("div", x5u), whole.segment) == (header, body)
    value = identity(header, body, octets(signature), x5u, "div")
    assert value == f"{RFC_8946_TOKEN};info=<{x5u}>;alg=ES256;ppt=div"


# --- what is said


def test_a_base_identity_header_has_no_ppt_parameter() -> None:
    value = identity(header_segment("base", X5U), made(Base()).segment, bytes(64), X5U, "base")
    assert value.endswith(f";info=<{X5U}>;alg=ES256")
    assert parse(value).ppt == "base"


def test_iat_and_origid_are_made_when_absent() -> None:
    whole = made(Shaken("B"))
    assert whole.origid == ORIGID
    assert json.loads(whole.json)["iat"] == NOW
    assert json.loads(whole.json)["origid"] == ORIGID


def test_numbers_and_uris_can_be_called_at_once() -> None:
    whole = said(Base(), dest_tn=("+1", "#250"), dest_uri=("SIP:a@b", "urn:service:sos"))
    assert whole["dest"] == {"tn": ["1", "#250"], "uri": ["sip:a@b", "urn:service:sos"]}
    assert said(Base(), dest_tn=(), dest_uri=("sip:a@b",))["dest"] == {"uri": ["sip:a@b"]}
    assert said(Base(), dest_tn=("1", "2"))["dest"] == {"tn": ["1", "2"]}


def test_a_div_keeps_an_old_iat_and_takes_what_can_be_dest() -> None:
    whole = said(Div(Tn("*67")), iat=NOW - 3600)
    assert (whole["div"], whole["iat"]) == ({"tn": "*67"}, NOW - 3600)
    assert said(Div(Uri("sip:A@b")))["div"] == {"uri": "sip:a@b"}
    assert "attest" not in whole
    assert "origid" not in whole


def test_rph_lists_resource_priorities() -> None:
    assert said(Rph(("ets.0", "wps.0")))["rph"] == {"auth": ["ets.0", "wps.0"]}


def test_rcd_says_everything_it_was_given() -> None:
    digest = "sha256-7kdCBZqH0nqMSPsmABvsKlHPhZEStgjojhdSJGRr3rk"
    rcd = Rcd("Änne", "+1 (2)", "https://h/i", "", "https://h/j", {"/jcl": digest}, "Your order")
    whole = said(rcd)
    assert whole["rcd"] == {
        "nam": "Änne",
        "apn": "12",
        "icn": "https://h/i",
        "jcl": "https://h/j",
    }
    assert (whole["rcdi"], whole["crn"]) == ({"/jcl": digest}, "Your order")
    card = said(Rcd(jcd='["vcard", [["fn", {}, "text", "\\u00c4"]]]', rcdi={"/jcd/1/0": digest}))
    assert card["rcd"] == {"nam": "", "jcd": ["vcard", [["fn", {}, "text", "Ä"]]]}


# --- what is refused


@pytest.mark.parametrize("iat", [NOW + 61, NOW - 61, 1, -1])
def test_an_iat_that_is_not_fresh_is_refused(iat: int) -> None:
    assert refusal(Shaken("A"), iat).reason == "IAT_NOT_FRESH"


@pytest.mark.parametrize("iat", [NOW + 61, -1])
def test_a_div_from_the_future_or_before_time_is_refused(iat: int) -> None:
    assert refusal(Div(ORIG), iat).reason == "IAT_NOT_FRESH"


@pytest.mark.parametrize("iat", [NOW - 60, NOW + 60])
def test_an_iat_at_the_edge_of_fresh_is_taken(iat: int) -> None:
    assert said(Base(), iat)["iat"] == iat


def test_no_destination_and_too_many_are_refused() -> None:
    assert refusal(Base(), dest_tn=()).reason == "DEST_EMPTY"
    many = refusal(Base(), dest_tn=("1",) * DEST_LIMIT, dest_uri=("sip:a@b",))
    assert (many.reason, many.metadata["limit"]) == ("DEST_TOO_MANY", str(DEST_LIMIT))


@pytest.mark.parametrize("attest", ["", "a", "D", "AB", "ABC", '"'])
def test_an_attestation_is_a_b_or_c(attest: str) -> None:
    assert refusal(Shaken(attest)).reason == "ATTEST_INVALID"


@pytest.mark.parametrize("origid", ["1", ORIGID[:-1], ORIGID + "0", ORIGID + "\n", "{" + ORIGID])
def test_an_origid_is_a_uuid(origid: str) -> None:
    assert refusal(Shaken("A", origid)).reason == "ORIGID_INVALID"


@pytest.mark.parametrize("auth", [(), ("ets",), ("ets.0.1",), ('e".0',), ("ets.0",) * 17])
def test_rph_values_have_a_namespace_and_a_priority(auth: tuple[str, ...]) -> None:
    assert refusal(Rph(auth)).reason == "RPH_INVALID"
    assert RPH_LIMIT == 16


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"orig": Tn("x")}, "orig"),
        ({"orig": Uri("x")}, "orig"),
        ({"dest_tn": ("x",)}, "dest"),
        ({"dest_uri": ("x",)}, "dest"),
    ],
)
def test_a_refusal_names_the_field(changes: dict[str, Any], field: str) -> None:
    assert refusal(Base(), **changes).metadata["field"] == field
    assert refusal(Div(Tn("x"))).metadata["field"] == "div"


CARD = '["vcard",[]]'
DIGEST = "sha256-" + "A" * 43


@pytest.mark.parametrize(
    ("rcd", "field"),
    [
        (Rcd(), "rcd"),
        (Rcd(crn="why"), "rcd"),
        (Rcd(nam="a" * (TEXT_LIMIT + 1)), "nam"),
        (Rcd(nam="a\nb"), "nam"),
        (Rcd(nam="\ud800"), "nam"),
        (Rcd(nam="a", crn="\x00"), "crn"),
        (Rcd(apn="x"), "apn"),
        (Rcd(icn="http://h/"), "icn"),
        (Rcd(jcl="ftp://h/"), "jcl"),
        (Rcd(jcd=CARD, jcl="https://h/"), "jcd"),
        (Rcd(jcd="["), "jcd"),
        (Rcd(jcd="[" * 5000), "jcd"),
        (Rcd(jcd="{}"), "jcd"),
        (Rcd(jcd='["vcard",{}]'), "jcd"),
        (Rcd(jcd='["vcard",[{"a":1,"a":2}]]'), "jcd"),
        (Rcd(jcd='["vcard",[NaN]]'), "jcd"),
        (Rcd(jcd='["vcard",[1e999]]'), "jcd"),
        (Rcd(jcd='["vcard",["\\ud800"]]'), "jcd"),
        (Rcd(jcd=" " * JCARD_LIMIT + CARD), "jcd"),
        (Rcd(nam="a", rcdi={"/icn": DIGEST}), "rcdi"),
        (Rcd(nam="a", rcdi={"nam": DIGEST}), "rcdi"),
        (Rcd(nam="a", rcdi={"/nam/~2": DIGEST}), "rcdi"),
        (Rcd(nam="a", rcdi={"/nam": "sha1-AAAA"}), "rcdi"),
        (Rcd(nam="a", rcdi={"/nam" + "/a" * TEXT_LIMIT: DIGEST}), "rcdi"),
        (Rcd(nam="a", rcdi={f"/nam/{n}": DIGEST for n in range(DIGEST_LIMIT + 1)}), "rcdi"),
    ],
)
def test_rich_call_data_that_breaks_its_rules_is_refused(rcd: Rcd, field: str) -> None:
    assert refusal(rcd).metadata["field"] == field


@pytest.mark.parametrize("ppt", ["", "SHAKEN", "div-o"])
def test_an_unknown_type_has_no_header(ppt: str) -> None:
    with pytest.raises(Invalid) as caught:
        header_segment(ppt, X5U)
    assert caught.value.reason == "PPT_INVALID"


@pytest.mark.parametrize("x5u", ["", "http://h/a", 'https://h/"', "https://h/a>;ppt=x"])
def test_an_x5u_that_would_break_the_header_is_refused(x5u: str) -> None:
    with pytest.raises(Invalid) as caught:
        header_segment("shaken", x5u)
    assert caught.value.reason == "X5U_INVALID"


# --- canonical JSON, proven

NUMBERS = st.from_regex(r"\+?[1-9][0-9 ().-]{0,13}", fullmatch=True)
URIS = st.from_regex(r"sips?:[A-Za-z0-9.!~*'()&=+$,;?/_-]{1,9}@[a-z0-9]{1,9}", fullmatch=True)
IDENTITIES = NUMBERS.map(Tn) | URIS.map(Uri)
TEXT = st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=20)
KINDS = st.one_of(
    st.builds(Shaken, st.sampled_from("ABC"), st.uuids().map(str)),
    st.builds(Base),
    st.builds(Div, IDENTITIES),
    st.builds(
        Rph,
        st.lists(st.from_regex(r"[a-z!%*_+`'~-]{1,5}\.[0-9a-z]", fullmatch=True), min_size=1).map(
            lambda values: tuple(values[:RPH_LIMIT])
        ),
    ),
    st.builds(
        Rcd,
        nam=TEXT.filter(bool),
        apn=st.just("") | NUMBERS,
        jcd=st.just("") | TEXT.map(lambda text: json.dumps(["vcard", [text, {text: 1.5}]])),
        rcdi=st.just({}) | st.just({"/nam": DIGEST}),
        crn=TEXT,
    ),
)
CLAIMS = st.builds(
    Claims,
    IDENTITIES,
    st.lists(NUMBERS, max_size=3).map(tuple),
    st.lists(URIS, max_size=3).map(tuple),
    st.integers(NOW - 60, NOW + 60),
    KINDS,
).filter(lambda claims: bool(claims.dest_tn or claims.dest_uri))


@given(CLAIMS)
def test_every_payload_is_the_canonical_json_of_its_claims(claims: Claims) -> None:
    whole = payload(claims, now=NOW, freshness=60, new_origid=lambda: ORIGID)
    value = json.loads(whole.json)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert whole.json == text.encode()
    assert value["orig"] == expected(claims.orig)
    assert value["iat"] == claims.iat
    assert value["dest"].get("tn", []) == [canonical_tn(each) for each in claims.dest_tn]
    assert value["dest"].get("uri", []) == [canonical_uri(each) for each in claims.dest_uri]
    match claims.type:
        case Shaken(attest, origid):
            assert (value["attest"], value["origid"], whole.origid) == (attest, origid, origid)
        case Div(div):
            assert value["div"] == expected(div)
        case Rph(auth):
            assert value["rph"] == {"auth": list(auth)}
        case Rcd() as rcd:
            assert (value["rcd"]["nam"], value.get("crn", "")) == (rcd.nam, rcd.crn)
    names = {"Shaken": "shaken", "Base": "base", "Div": "div", "Rph": "rph", "Rcd": "rcd"}
    ppt = names[type(claims.type).__name__]
    parsed = parse(identity(header_segment(ppt, X5U), whole.segment, bytes(64), X5U, ppt))
    assert (parsed.claims, parsed.ppt, parsed.x5u) == (value, ppt, X5U)
    assert parsed.signing_input == signing_input(header_segment(ppt, X5U), whole.segment)


def expected(value: Tn | Uri) -> dict[str, str]:
    match value:
        case Tn(number):
            return {"tn": canonical_tn(number)}
        case Uri(uri):
            return {"uri": canonical_uri(uri)}


@given(
    st.builds(
        Claims,
        st.text().map(Tn) | st.text().map(Uri),
        st.lists(st.text(), max_size=2).map(tuple),
        st.lists(st.text(), max_size=2).map(tuple),
        st.integers(-1, 2 * NOW),
        st.builds(Shaken, st.text(), st.text())
        | st.builds(Rph, st.lists(st.text()).map(tuple))
        | st.builds(Rcd, *[st.text()] * 5, st.dictionaries(st.text(), st.text()), st.text()),
    )
)
def test_arbitrary_claims_are_refused_with_a_reason(claims: Claims) -> None:
    with pytest.raises(Invalid):
        payload(claims, now=NOW, freshness=60, new_origid=lambda: ORIGID)


# --- reading an Identity header

VALUE = identity(
    header_segment("shaken", X5U), made(Shaken("A", ORIGID)).segment, bytes(64), X5U, "shaken"
)
TOKEN, _, PARAMETERS = VALUE.partition(";")
HEADER, BODY, SIGNATURE = TOKEN.split(".")


def segment(value: str) -> str:
    return base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "value",
    [
        VALUE,
        f'{TOKEN};ppt="shaken";info=<{X5U}>',
        f"{TOKEN} ; alg=ES256 ; PPT = shaken ;\tinfo = <{X5U}>;other;x=y",
    ],
)
def test_parameters_come_in_any_order_quoted_or_not(value: str) -> None:
    parsed = parse(value)
    assert (parsed.ppt, parsed.alg, parsed.typ, parsed.x5u) == ("shaken", "ES256", "passport", X5U)
    assert parsed.signature == bytes(64)
    assert parsed.claims["origid"] == ORIGID


def changed_header(**members: object) -> str:
    header: dict[str, object] = {"alg": "ES256", "ppt": "shaken", "typ": "passport", "x5u": X5U}
    header = {key: value for key, value in (header | members).items() if value is not None}
    return f"{segment(json.dumps(header))}.{BODY}.{SIGNATURE};{PARAMETERS}"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a" * (IDENTITY_LIMIT + 1), "IDENTITY_TOO_LARGE"),
        ("", "IDENTITY_MALFORMED"),
        ("a.b", "IDENTITY_MALFORMED"),
        (f"{TOKEN}.x;{PARAMETERS}", "IDENTITY_MALFORMED"),
        (f"{TOKEN};{PARAMETERS}\r\nVia: x", "IDENTITY_MALFORMED"),
        (f"{VALUE};ppt=shaken", "IDENTITY_MALFORMED"),
        (f"{VALUE};", "IDENTITY_MALFORMED"),
        (f"{HEADER}.{BODY}.A;{PARAMETERS}", "IDENTITY_MALFORMED"),
        (f"..{SIGNATURE};{PARAMETERS}", "COMPACT_FORM"),
        (f"{HEADER}..{SIGNATURE};{PARAMETERS}", "COMPACT_FORM"),
        (TOKEN, "INFO_INVALID"),
        (f"{TOKEN};info={'x'};ppt=shaken", "INFO_INVALID"),
        (f"{TOKEN};info=<http://h/>;ppt=shaken", "INFO_INVALID"),
        (f"{TOKEN};info=<https://h/>;ppt=shaken", "INFO_MISMATCH"),
        (f"{TOKEN};info=<{X5U}>", "PPT_MISMATCH"),
        (f"{TOKEN};info=<{X5U}>;ppt=div", "PPT_MISMATCH"),
        (f"{TOKEN};info=<{X5U}>;ppt=shaken;alg=ES384", "ALG_MISMATCH"),
        (f"A.{BODY}.{SIGNATURE};{PARAMETERS}", "HEADER_MALFORMED"),
        (f"{segment('[]')}.{BODY}.{SIGNATURE};{PARAMETERS}", "HEADER_MALFORMED"),
        (changed_header(x5u=None), "HEADER_MALFORMED"),
        (changed_header(alg=1), "HEADER_MALFORMED"),
        (changed_header(ppt="base"), "HEADER_MALFORMED"),
        (changed_header(crit=["x"]), "HEADER_MALFORMED"),
        (f"{HEADER}.{segment('{')}.{SIGNATURE};{PARAMETERS}", "PAYLOAD_MALFORMED"),
        (
            f'{HEADER}.{segment("""{"iat":1,"iat":2}""")}.{SIGNATURE};{PARAMETERS}',
            "PAYLOAD_MALFORMED",
        ),
        (f"{HEADER}.gA.{SIGNATURE};{PARAMETERS}", "PAYLOAD_MALFORMED"),
    ],
)
def test_a_malformed_identity_header_is_refused(value: str, reason: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(value)
    assert caught.value.reason == reason


@given(
    st.text(max_size=80)
    | st.from_regex(r"[A-Za-z0-9]{0,9}\.[A-Za-z0-9]{0,9}\.[A-Za-z0-9]{0,9};info=<.{0,20}>")
    | st.text(max_size=40).map(lambda header: f"{segment(repr(header))}.{BODY}.AA;{PARAMETERS}")
)
def test_arbitrary_text_is_no_identity_header(value: str) -> None:
    with pytest.raises(Invalid):
        parse(value)
