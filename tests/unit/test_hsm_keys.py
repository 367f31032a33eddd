"""What modules tell of keys, in all their dialects, without a module."""

from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute

from kmsd import errors
from kmsd.hsm import keys

KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
SPKI = KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
POINT = KEY.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
FIT: dict[Attribute, Any] = dict(keys.REQUIRED)
NAMED = {f"CKA_{attribute.name}": value for attribute, value in FIT.items()}


class Told:
    """An object that tells these attributes, and refuses a question about any other."""

    def __init__(self, values: dict[Attribute, Any], *, together: bool = True) -> None:
        self.values = values
        self.together = together

    def __getitem__(self, attribute: Attribute) -> Any:
        if attribute not in self.values:
            raise pkcs11.AttributeTypeInvalid
        return self.values[attribute]

    def get_attributes(self, wanted: list[Attribute]) -> dict[Attribute, Any]:
        if not self.together:
            raise pkcs11.FunctionFailed
        return {name: self.values[name] for name in wanted if name in self.values}


@pytest.mark.parametrize("point", [b"\x04\x41" + POINT, POINT], ids=["wrapped", "bare"])
def test_a_public_key_is_read_in_both_encodings(point: bytes) -> None:
    key: Any = Told({Attribute.EC_POINT: point})
    assert keys.public_key_of(key) == SPKI


@pytest.mark.parametrize("values", [{}, {Attribute.EC_POINT: b""}], ids=["untold", "empty"])
def test_a_half_need_not_tell_the_public_key(values: dict[Attribute, Any]) -> None:
    key: Any = Told(values)
    assert keys.public_key_of(key) is None


@pytest.mark.parametrize(
    "point",
    [b"\x04", POINT[:-1], POINT[:-1] + bytes([POINT[-1] ^ 1]), b"\x04" + b"\xff" * 96],
    ids=["nothing", "short", "off the curve", "P-384"],
)
def test_a_key_on_no_or_another_curve_is_refused(point: bytes) -> None:
    key: Any = Told({Attribute.EC_POINT: point})
    with pytest.raises(errors.Misconfigured):
        keys.public_key_of(key)


@pytest.mark.parametrize("together", [True, False])
def test_attributes_a_module_does_not_know_are_left_out(together: bool) -> None:
    values: dict[Attribute, Any] = {
        name: value for name, value in FIT.items() if name is not Attribute.SIGN_RECOVER
    }
    key: Any = Told(values, together=together)
    read = keys.read_attributes(key)
    assert read == {name: value for name, value in NAMED.items() if name != "CKA_SIGN_RECOVER"}
    keys.check_attributes("id", read)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_each_attribute_is_checked(name: str) -> None:
    keys.check_attributes("id", NAMED)
    with pytest.raises(errors.Misconfigured) as caught:
        keys.check_attributes("id", NAMED | {name: not NAMED[name]})
    assert caught.value.reason == "HSM_KEY_ATTRIBUTES"
    assert name in caught.value.metadata["attributes"]


@pytest.mark.parametrize("name", ["CKA_SENSITIVE", "CKA_EXTRACTABLE", "CKA_SIGN"])
def test_silence_on_what_matters_most_is_a_violation(name: str) -> None:
    with pytest.raises(errors.Misconfigured):
        keys.check_attributes("id", {key: value for key, value in NAMED.items() if key != name})


def test_a_signature_verifies_only_with_the_key_it_is_by() -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    der = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert not keys.verifies(der, b"d" * 32, b"s" * 64)
    assert not keys.verifies(SPKI, b"d" * 32, b"s" * 64)
    assert not keys.verifies(SPKI, b"d" * 32, b"\0" * 64)
