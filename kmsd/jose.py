"""JOSE as ACME and SPC tokens need it: base64url, P-256 JWKs, fingerprints, flattened JWS.

Pure: a signature is made elsewhere, by whoever holds the key. Verifying other people's JWS
is a library's work and not done here.
RFC 7515 (JWS), RFC 7517 and 7518 (JWK, ES256, HS256), RFC 7638 (thumbprint),
RFC 9448 section 5.4 (fingerprint), RFC 8555 section 6.2 (which JWS ACME takes).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from kmsd.errors import Invalid
from kmsd.settings import EmptyPayload, FingerprintKind, LetterCase

Jwk = dict[str, str]


def b64url(data: bytes) -> str:
    """`data` in base64url without padding (RFC 7515 section 2)."""
    # Twice in each PASSporT: without the library's two wrappers it takes half the time.
    return (
        binascii.b2a_base64(data, newline=False)
        .translate(_TO_URL_SAFE)
        .rstrip(b"=")
        .decode("ascii")
    )


_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def b64url_decode(text: str) -> bytes:
    """The octets that `text` is the base64url of.

    Strict: no padding, no white space, no other alphabet, no stray bits, so that each octet
    string has exactly one text. Raises Invalid (BASE64URL_INVALID).
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _not_base64url() from error
    if b64url(data) != text:
        raise _not_base64url()
    return data


def jwk(public_key: bytes) -> Jwk:
    """The public JWK of a P-256 key, with just the members RFC 7638 hashes, in its order.

    public_key: DER SubjectPublicKeyInfo with an uncompressed point (91 octets).
    Raises Invalid (KEY_NOT_P256).
    """
    point = _point(public_key)
    return {"crv": "P-256", "kty": "EC", "x": b64url(point[1:33]), "y": b64url(point[33:])}


def thumbprint(public_key: bytes) -> bytes:
    """The RFC 7638 thumbprint (SHA-256, 32 octets) of a P-256 key given as DER SPKI."""
    return hashlib.sha256(compact_json(jwk(public_key))).digest()


def fingerprint(public_key: bytes, kind: FingerprintKind, case: LetterCase) -> str:
    """The `fingerprint` of an SPC token for this ACME account key (DER SPKI, P-256).

    `SHA256 ` and 32 hex pairs with colons. RFC 9448 section 5.4 wants the JWK thumbprint in
    upper case; STI-CAs in the field also compare a hash of the SPKI, or lower case.
    """
    digest = thumbprint(public_key)
    if kind is FingerprintKind.SPKI:
        digest = hashlib.sha256(public_key).digest()
    pairs = digest.hex(":")
    return "SHA256 " + (pairs.upper() if case is LetterCase.UPPER else pairs)


def compact_json(value: object) -> bytes:
    """`value` as JSON without white space, members in the order they are in."""
    return msgspec.json.encode(value)


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A JWS but for its signature: what to sign, and what then becomes of it."""

    protected: str
    payload: str
    signing_input: bytes

    def signed(self, signature: bytes) -> dict[str, str]:
        """The flattened JWS (RFC 7515 section 7.2.2) with this raw r||s signature.

        Raises Invalid (SIGNATURE_MALFORMED) unless it is 64 octets: some modules return DER.
        """
        if len(signature) != 64:
            raise Invalid(
                "SIGNATURE_MALFORMED",
                f"An ES256 signature is 64 octets r||s, this one has {len(signature)}.",
            )
        return self._with(signature)

    def maced(self, mac_key: bytes) -> dict[str, str]:
        """The flattened JWS with an HS256 MAC, as external account bindings have."""
        return self._with(hmac.digest(mac_key, self.signing_input, "sha256"))

    def _with(self, signature: bytes) -> dict[str, str]:
        return {
            "protected": self.protected,
            "payload": self.payload,
            "signature": b64url(signature),
        }


def unsigned(
    protected: Mapping[str, object],
    payload: bytes,
    empty_payload: EmptyPayload = EmptyPayload.STANDARD,
) -> Unsigned:
    """A JWS to be signed: `protected` header as JSON, `payload` as it is.

    empty_payload: at least one STI-CA takes POST-as-GET only if the dot before an empty
    payload is not signed (PROTECTED_ONLY); other payloads are not affected.
    """
    header, body = b64url(compact_json(protected)), b64url(payload)
    if not body and empty_payload is EmptyPayload.PROTECTED_ONLY:
        return Unsigned(header, body, header.encode())
    return Unsigned(header, body, f"{header}.{body}".encode())


def _point(public_key: bytes) -> bytes:
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _not_p256() from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _not_p256()
    # One key, one encoding: a compressed point would give a second SPKI fingerprint.
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public_key:
        raise _not_p256()
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _not_base64url() -> Invalid:
    return Invalid("BASE64URL_INVALID", "This is not base64url without padding (RFC 7515).")


def _not_p256() -> Invalid:
    return Invalid("KEY_NOT_P256", "This is not the DER SubjectPublicKeyInfo of a P-256 key.")
