"""PKCS#11 return codes, key ids and signature encodings, without a token."""

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from kmsd import errors, hsm
from kmsd.hsm.failures import ckr_name, translate
from kmsd.hsm.keys import raw_signature

EVERY_EXCEPTION = sorted(pkcs11.PKCS11Error.__subclasses__(), key=lambda kind: kind.__name__)
SCALARS = st.integers(1, 2**256 - 1)


@pytest.mark.parametrize("kind", EVERY_EXCEPTION, ids=lambda kind: kind.__name__)
def test_every_return_code_becomes_one_of_our_errors(kind: type[pkcs11.PKCS11Error]) -> None:
    error = translate(kind(), "rack 2")
    assert error.reason.startswith("HSM_")
    assert error.metadata["token"] == "rack 2"
    assert error.metadata["ckr"].startswith("CKR_")
    assert error.metadata["ckr"] in str(error)
    assert error.next_step


@pytest.mark.parametrize(
    ("exception", "name", "kind", "reason"),
    [
        (
            pkcs11.SessionHandleInvalid(),
            "CKR_SESSION_HANDLE_INVALID",
            "Unavailable",
            "SESSION_LOST",
        ),
        (pkcs11.SessionClosed(), "CKR_SESSION_CLOSED", "Unavailable", "SESSION_LOST"),
        (pkcs11.OperationActive(), "CKR_OPERATION_ACTIVE", "Unavailable", "SESSION_LOST"),
        (pkcs11.ObjectHandleInvalid(), "CKR_OBJECT_HANDLE_INVALID", "Unavailable", "OBJECT_LOST"),
        (pkcs11.KeyHandleInvalid(), "CKR_KEY_HANDLE_INVALID", "Unavailable", "OBJECT_LOST"),
        (pkcs11.UserNotLoggedIn(), "CKR_USER_NOT_LOGGED_IN", "Unavailable", "LOGIN_LOST"),
        (pkcs11.PinIncorrect(), "CKR_PIN_INCORRECT", "Misconfigured", "PIN_INCORRECT"),
        (pkcs11.PinLocked(), "CKR_PIN_LOCKED", "Misconfigured", "PIN_LOCKED"),
        (pkcs11.PinExpired(), "CKR_PIN_EXPIRED", "Misconfigured", "PIN_EXPIRED"),
        (pkcs11.DeviceRemoved(), "CKR_DEVICE_REMOVED", "Unavailable", "LOST"),
        (pkcs11.TokenNotPresent(), "CKR_TOKEN_NOT_PRESENT", "Unavailable", "LOST"),
        (pkcs11.TokenNotRecognised(), "CKR_TOKEN_NOT_RECOGNIZED", "Unavailable", "LOST"),
        (pkcs11.DeviceError(), "CKR_DEVICE_ERROR", "Unavailable", "LOST"),
        (pkcs11.GeneralError(), "CKR_GENERAL_ERROR", "Unavailable", "LOST"),
        (pkcs11.FunctionFailed(), "CKR_FUNCTION_FAILED", "Unavailable", "FAILED"),
        (pkcs11.SlotIDInvalid(), "CKR_SLOT_ID_INVALID", "Unavailable", "LOST"),
        (pkcs11.DeviceMemory(), "CKR_DEVICE_MEMORY", "Exhausted", "MEMORY"),
        (pkcs11.HostMemory(), "CKR_HOST_MEMORY", "Exhausted", "MEMORY"),
        (pkcs11.SessionCount(), "CKR_SESSION_COUNT", "Exhausted", "SESSION_COUNT"),
        (pkcs11.MechanismInvalid(), "CKR_MECHANISM_INVALID", "Misconfigured", "MECHANISM_REFUSED"),
        (
            pkcs11.PKCS11Error("Unmapped error code 0x68"),
            "CKR_KEY_FUNCTION_NOT_PERMITTED",
            "Misconfigured",
            "MECHANISM_REFUSED",
        ),
        (
            pkcs11.PKCS11Error("Initialisation error (not initialized). Should never see this."),
            "CKR_CRYPTOKI_NOT_INITIALIZED",
            "Unavailable",
            "LOST",
        ),
        (
            pkcs11.PKCS11Error("Unmapped error code 0x80000001"),
            "0x80000001",
            "Unavailable",
            "FAILED",
        ),
    ],
)
def test_a_return_code_says_whose_fault_it_is(
    exception: pkcs11.PKCS11Error, name: str, kind: str, reason: str
) -> None:
    assert ckr_name(exception) == name
    error = translate(exception, "kmsd")
    assert (type(error).__name__, error.reason) == (kind, f"HSM_{reason}")


@given(r=SCALARS, s=SCALARS)
def test_a_der_signature_becomes_r_and_s(r: int, s: int) -> None:
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    der = encode_dss_signature(r, s)
    assert raw_signature(raw) == raw
    if len(der) != 64:
        assert raw_signature(der) == raw


@given(st.binary(max_size=200).filter(lambda data: len(data) != 64 and data[:1] != b"\x30"))
def test_bytes_that_are_no_signature_are_refused(data: bytes) -> None:
    with pytest.raises(errors.Misconfigured) as caught:
        raw_signature(data)
    assert caught.value.reason == "HSM_SIGNATURE_FORMAT"


def test_a_signature_for_a_larger_curve_is_refused() -> None:
    with pytest.raises(errors.Misconfigured):
        raw_signature(encode_dss_signature(2**383, 1))


def test_key_ids_are_ours_and_never_twice_the_same() -> None:
    ids = {hsm.new_key_id() for _ in range(100)}
    assert len(ids) == 100
    assert {(len(key_id), bytes.fromhex(key_id)[:4]) for key_id in ids} == {(32, b"kmsd")}
