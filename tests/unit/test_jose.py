"""JOSE against the published vectors (RFC 8225 appendix A key, RFC 7515, RFC 9448)."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OctKey

from kmsd import jose
from kmsd.errors import Invalid
from kmsd.settings import EmptyPayload, FingerprintKind, LetterCase

RFC8225_X = "8HNbQd_TmvCKwPKHkMF9fScavGeH78YTU8qLS8I5HLE"
RFC8225_Y = "0kppQEy3LJUDITQvzoZVgWAutupyJaO13nm2Eu0m9-4"
F1 = (
    "SHA256 55:AB:8E:CC:BD:81:05:F1:F5:CD:69:CC:97:BB:D2:71:"
    "3E:99:30:A1:0F:1B:9B:B9:38:BC:12:E7:DF:F6:00:46"
)
F2 = (
    "SHA256 04:61:7E:18:81:8F:ED:CD:CA:CD:37:47:26:F9:57:AC:"
    "B1:AE:95:FF:D6:41:19:26:B6:9C:DA:77:A4:13:DD:36"
)


def spki(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def rfc8225_key() -> bytes:
    x, y = (int.from_bytes(base64.urlsafe_b64decode(t + "=")) for t in (RFC8225_X, RFC8225_Y))
    return spki(ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key())


@given(st.binary(max_size=200))
def test_base64url_comes_back_and_has_no_padding(data: bytes) -> None:
    text = jose.b64url(data)
    assert "=" not in text
    assert jose.b64url_decode(text) == data


@pytest.mark.parametrize(
    "text",
    ["YQ==", "Y", "YR", "Y Q", "YQ\n", "+/+/", "-_é", "YWJj=", "YWJjZ===", "YQ=", "=", "a=bc"],
)
def test_base64url_is_refused_when_it_is_not_the_one_form(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        jose.b64url_decode(text)
    assert refused.value.reason == "BASE64URL_INVALID"


@given(st.text(max_size=20))
def test_what_base64url_takes_it_gives_back(text: str) -> None:
    try:
        data = jose.b64url_decode(text)
    except Invalid:
        return
    assert jose.b64url(data) == text


def test_the_jwk_of_the_rfc_8225_key() -> None:
    assert jose.jwk(rfc8225_key()) == {
        "crv": "P-256",
        "kty": "EC",
        "x": RFC8225_X,
        "y": RFC8225_Y,
    }


def test_a_jwk_coordinate_keeps_its_leading_zeros() -> None:
    number = 1
    while True:  # one key in 256 has a short coordinate
        key = ec.derive_private_key(number, ec.SECP256R1()).public_key()
        if key.public_numbers().x < 1 << 248:
            break
        number += 1
    assert len(jose.jwk(spki(key))["x"]) == 43


def test_the_thumbprint_of_the_rfc_8225_key() -> None:
    digest = jose.thumbprint(rfc8225_key())
    assert jose.b64url(digest) == "VauOzL2BBfH1zWnMl7vScT6ZMKEPG5u5OLwS59_2AEY"


def test_the_thumbprint_is_what_joserfc_makes_it() -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    theirs = ECKey.import_key(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert jose.b64url(jose.thumbprint(spki(public))) == theirs.thumbprint()


@pytest.mark.parametrize(
    ("kind", "case", "expected"),
    [
        (FingerprintKind.JWK_THUMBPRINT, LetterCase.UPPER, F1),
        (FingerprintKind.JWK_THUMBPRINT, LetterCase.LOWER, "SHA256 " + F1[7:].lower()),
        (FingerprintKind.SPKI, LetterCase.UPPER, F2),
        (FingerprintKind.SPKI, LetterCase.LOWER, "SHA256 " + F2[7:].lower()),
    ],
)
def test_each_fingerprint_found_in_the_field(
    kind: FingerprintKind, case: LetterCase, expected: str
) -> None:
    assert jose.fingerprint(rfc8225_key(), kind, case) == expected


def compressed(public: ec.EllipticCurvePublicKey) -> bytes:
    point = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point


@pytest.mark.parametrize(
    "public_key",
    [
        b"",
        b"0" * 91,
        rfc8225_key()[:-1],
        rfc8225_key() + b"\0",
        rfc8225_key()[:-1] + b"\0",
        spki(ec.derive_private_key(7, ec.SECP384R1()).public_key()),
        spki(rsa.generate_private_key(65537, 2048).public_key()),
        compressed(ec.derive_private_key(7, ec.SECP256R1()).public_key()),
    ],
    ids=["empty", "garbage", "cut", "longer", "off the curve", "P-384", "RSA", "compressed"],
)
@pytest.mark.parametrize("kind", FingerprintKind)
def test_only_a_p256_key_has_a_fingerprint(public_key: bytes, kind: FingerprintKind) -> None:
    with pytest.raises(Invalid) as refused:
        jose.fingerprint(public_key, kind, LetterCase.UPPER)
    assert refused.value.reason == "KEY_NOT_P256"


def test_the_signing_input_of_rfc_7515_appendix_a3() -> None:
    payload = b'{"iss":"joe",\r\n "exp":1300819380,\r\n "http://example.com/is_root":true}'
    assert jose.unsigned({"alg": "ES256"}, payload).signing_input == (
        b"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGF"
        b"tcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    )


def test_an_empty_payload_is_signed_with_its_dot_unless_the_sti_ca_wants_it_without() -> None:
    standard = jose.unsigned({"alg": "ES256"}, b"")
    without = jose.unsigned({"alg": "ES256"}, b"", EmptyPayload.PROTECTED_ONLY)
    assert standard.signing_input == b"eyJhbGciOiJFUzI1NiJ9."
    assert without.signing_input == b"eyJhbGciOiJFUzI1NiJ9"
    assert standard.payload == without.payload == ""


def test_a_payload_that_is_not_empty_is_signed_alike_for_every_sti_ca() -> None:
    header = {"alg": "ES256"}
    assert jose.unsigned(header, b"{}", EmptyPayload.PROTECTED_ONLY) == jose.unsigned(header, b"{}")


@pytest.mark.parametrize("length", [0, 63, 65, 70, 72])
def test_a_signature_that_is_not_raw_is_refused(length: int) -> None:
    with pytest.raises(Invalid) as refused:
        jose.unsigned({"alg": "ES256"}, b"{}").signed(b"0" * length)
    assert refused.value.reason == "SIGNATURE_MALFORMED"


def test_a_signed_jws_has_the_three_members_and_no_other() -> None:
    made = jose.unsigned({"alg": "ES256"}, b"{}").signed(b"\1" * 64)
    assert made == {
        "protected": "eyJhbGciOiJFUzI1NiJ9",
        "payload": "e30",
        "signature": jose.b64url(b"\1" * 64),
    }


def test_a_mac_is_what_joserfc_verifies() -> None:
    mac_key = hashlib.sha256(b"eab").digest()
    made = jose.unsigned({"alg": "HS256", "kid": "k"}, b"{}").maced(mac_key)
    compact = f"{made['protected']}.{made['payload']}.{made['signature']}"
    theirs = jws.deserialize_compact(compact, OctKey.import_key(mac_key), algorithms=["HS256"])
    assert json.loads(theirs.payload) == {}
