"""Keys as kmsd wants them on a token: names, templates, what is read back, public keys.

Rules and conversions only; the calls are `token`'s and `session`'s. A signing key is an EC
key on P-256 made in the token, that never leaves it and can do nothing but sign ES256
(RFC 7518 section 3.4), the one algorithm of SHAKEN.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from pkcs11 import Attribute, KeyType, Mechanism, Object
from pkcs11.attributes import ATTRIBUTE_TYPES, handle_bool
from pkcs11.constants import DEFAULT
from pkcs11.exceptions import AttributeSensitive, AttributeTypeInvalid, FunctionFailed

from kmsd.errors import Invalid, Misconfigured, Precondition

PREFIX = b"kmsd"
ID_BYTES = 16
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
ECDSA = Mechanism.ECDSA
EC_KEY_PAIR_GEN = Mechanism.EC_KEY_PAIR_GEN
P256 = bytes.fromhex("06082a8648ce3d030107")  # CKA_EC_PARAMS: the OID of secp256r1


@dataclass(frozen=True, slots=True)
class Info:
    """What a login is on. module: manufacturer, description, version. serial: the token's."""

    module: str
    token: str
    serial: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """ours: CKA_IDs of keys and of halves left of keys with our prefix. foreign: all others,
    counted as objects (a key pair is two)."""

    ours: frozenset[str]
    foreign: int


def new_key_id() -> str:
    """A fresh CKA_ID: our prefix and 12 random bytes, as 32 lower-case hex digits."""
    return (PREFIX + os.urandom(ID_BYTES - len(PREFIX))).hex()


def is_ours(identifier: bytes) -> bool:
    """Whether an object with that CKA_ID is kmsd's to use and to destroy."""
    return len(identifier) == ID_BYTES and identifier.startswith(PREFIX)


def own_id(key_id: str) -> bytes:
    """The CKA_ID that `key_id` writes. Raises Invalid, or Precondition when it is not ours."""
    try:
        identifier = bytes.fromhex(key_id)
    except ValueError:
        identifier = b""
    if identifier.hex() != key_id or len(identifier) != ID_BYTES:
        raise Invalid("HSM_KEY_ID_INVALID", "A key id is 32 lower-case hexadecimal digits.")
    if not is_ours(identifier):
        raise Precondition(
            "HSM_KEY_FOREIGN",
            f"The key {key_id} is not one of kmsd's: their ids begin with {PREFIX.hex()}.",
            next_step="Other programs' objects are left to those programs.",
        )
    return identifier


def check_digest(digest: bytes) -> None:
    """Raises Invalid unless `digest` has the length of a SHA-256 digest."""
    if len(digest) != DIGEST_BYTES:
        raise Invalid(
            "HSM_DATA_REFUSED", f"A digest to sign has {DIGEST_BYTES} bytes, not {len(digest)}."
        )


REQUIRED = {  # of a private key, as PKCS#11 v2.40 sections 4.4.1, 4.8 and 4.9 define them
    Attribute.SENSITIVE: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
    Attribute.PRIVATE: True,
    Attribute.SIGN: True,
    Attribute.SIGN_RECOVER: False,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
# What a module may decline to tell; of the others silence is a violation.
OPTIONAL = frozenset(REQUIRED) - {Attribute.SENSITIVE, Attribute.EXTRACTABLE, Attribute.SIGN}
# Decided by kmsd for each key, so that none is lost, shared or mistaken for another.
FIXED = frozenset(
    {
        Attribute.CLASS,
        Attribute.KEY_TYPE,
        Attribute.EC_PARAMS,
        Attribute.ID,
        Attribute.LABEL,
        Attribute.TOKEN,
    }
)


def private_template(overrides: Mapping[str, bool | int | str]) -> dict[Attribute, Any]:
    """The template of a new private key, without its id and label.

    overrides: settings.Hsm.template, CKA_ name to value; the text "omit" leaves an attribute
    out, for a module that refuses to be asked for it. Raises Misconfigured.
    """
    template: dict[Attribute, Any] = {
        Attribute.KEY_TYPE: KeyType.EC,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.SIGN_RECOVER: False,  # SoftHSM's default is true
    }
    for name, value in overrides.items():
        attribute = Attribute.__members__.get(name.removeprefix("CKA_"))
        if attribute is None or not name.startswith("CKA_") or attribute not in ATTRIBUTE_TYPES:
            raise Misconfigured(
                "HSM_TEMPLATE_INVALID",
                f"hsm.template: there is no attribute {name}.",
                next_step="Names are those of PKCS#11, such as CKA_DERIVE.",
            )
        if attribute in FIXED:
            raise Misconfigured("HSM_TEMPLATE_INVALID", f"hsm.template: kmsd itself sets {name}.")
        template[attribute] = DEFAULT if value == "omit" else _typed(attribute, name, value)
    return template


def read_attributes(key: Object) -> dict[str, bool]:
    """The attributes of REQUIRED that the module knows for a private key, by CKA_ name."""
    try:
        values = key.get_attributes(list(REQUIRED))
    except (AttributeTypeInvalid, AttributeSensitive, FunctionFailed):
        # Some modules fail the whole question for one attribute they do not know.
        values = _one_by_one(key)
    return {f"CKA_{name.name}": bool(values[name]) for name in REQUIRED if name in values}


def check_attributes(key_id: str, attributes: Mapping[str, bool]) -> None:
    """Raises Misconfigured("HSM_KEY_ATTRIBUTES") unless the key is as REQUIRED says."""
    wrong = []
    for attribute, wanted in REQUIRED.items():
        name = f"CKA_{attribute.name}"
        value = attributes.get(name)
        if value is None and attribute not in OPTIONAL:
            wrong.append(f"{name} is not told")
        elif value is not None and value is not wanted:
            wrong.append(f"{name} is {str(value).lower()}")
    if wrong:
        raise Misconfigured(
            "HSM_KEY_ATTRIBUTES",
            f"The key {key_id} is not one that stays in the HSM and only signs:"
            f" {', '.join(wrong)}.",
            next_step="Correct hsm.template; a key like that is not used.",
            key=key_id,
            attributes=", ".join(wrong),
        )


def public_key_of(key: Object) -> bytes | None:
    """DER SubjectPublicKeyInfo from CKA_EC_POINT of either half; None where it is not told.

    Raises Misconfigured when that is no point on P-256.
    """
    try:
        point: bytes = key[Attribute.EC_POINT]
    except (AttributeTypeInvalid, AttributeSensitive, FunctionFailed, IndexError):
        return None
    if not point:
        return None
    # A DER OCTET STRING by the standard; older modules give the bare point. Both begin with
    # 04, so the length tells: 65 bytes are a point, 67 are one wrapped.
    bare = point[2:] if len(point) == 67 and point[1] == 65 else point
    try:
        public_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bare)
    except ValueError as error:
        raise Misconfigured("HSM_KEY_ATTRIBUTES", f"A key is not on P-256: {error}.") from error
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def raw_signature(signature: bytes) -> bytes:
    """r||s, 64 bytes, from that or from the DER some modules return. Raises Misconfigured."""
    if len(signature) == SIGNATURE_BYTES:  # the chance of a DER this short is below 2**-40
        return signature
    try:
        r, s = utils.decode_dss_signature(signature)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    except (ValueError, OverflowError) as error:
        raise Misconfigured(
            "HSM_SIGNATURE_FORMAT",
            f"The HSM returned {len(signature)} bytes that are no ECDSA P-256 signature.",
            next_step="See the vendor's manual for CKM_ECDSA.",
        ) from error


def verifies(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether `signature` (r||s) over `digest` is by `public_key` (DER SubjectPublicKeyInfo)."""
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    key = load_der_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(SHA256())))
    except InvalidSignature:
        return False
    return True


def _typed(attribute: Attribute, name: str, value: bool | int | str) -> bool | int | str:
    """`value`, if python-pkcs11 can encode it as that attribute."""
    handler = ATTRIBUTE_TYPES[attribute]
    try:
        if (handler is handle_bool) is not isinstance(value, bool):
            raise TypeError(f"{value!r} is not its type")
        handler[0](value)
    except (TypeError, ValueError, AttributeError, struct.error) as error:
        raise Misconfigured(
            "HSM_TEMPLATE_INVALID", f"hsm.template: {name} cannot be {value!r}."
        ) from error
    return value


def _one_by_one(key: Object) -> dict[Attribute, Any]:
    values = {}
    for attribute in REQUIRED:
        try:
            values[attribute] = key[attribute]
        except (AttributeTypeInvalid, AttributeSensitive, FunctionFailed, IndexError):
            continue
    return values
