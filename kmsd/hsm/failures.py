"""What a PKCS#11 return code means for kmsd: the one place where they become `errors`.

Unavailable: the session, the login or the token is lost. It stays lost until the module is
initialised anew, so the process is to be replaced, or the `Hsm` closed and opened again.
Misconfigured: the PIN, the token or the module is not as the configuration says.
Exhausted: the HSM has no room. Every error carries `ckr` and `token` in its metadata.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pkcs11

from kmsd.errors import Exhausted, Invalid, KmsdError, Misconfigured, Unavailable


@contextmanager
def translated(token: str) -> Iterator[None]:
    """Runs a block whose PKCS#11 exceptions leave it as `errors`. token: its label."""
    try:
        yield
    except pkcs11.PKCS11Error as error:
        raise translate(error, token) from error


def translate(error: pkcs11.PKCS11Error, token: str) -> KmsdError:
    """The error to raise for `error`, with metadata ckr and token."""
    return _meant(ckr_name(error), token)


def translated_code(code: int, token: str) -> KmsdError:
    """The same for a return code got without python-pkcs11."""
    return _meant(code_name(code), token)


def _meant(ckr: str, token: str) -> KmsdError:
    make, reason, sentence, next_step = _MEANINGS.get(ckr, _UNKNOWN)
    return make(
        reason, f"HSM {token!r}: {sentence} ({ckr}).", next_step=next_step, ckr=ckr, token=token
    )


def lost(reason: str, what: str, token: str) -> Unavailable:
    """The error for a loss that was noticed without a return code."""
    return Unavailable(reason, f"HSM {token!r}: {what}.", next_step=_REPLACE, token=token)


def ckr_name(error: pkcs11.PKCS11Error) -> str:
    """The return code's name in PKCS#11, such as CKR_PIN_INCORRECT; 0x... when it has none."""
    if type(error) is pkcs11.PKCS11Error:  # python-pkcs11 has no class for this code
        text = str(error)
        number = re.search(r"0x[0-9a-f]+", text)
        if number:
            return _NAMES.get(int(number[0], 16), number[0])
        uninitialised = "(not initialized)" in text
        return "CKR_CRYPTOKI_NOT_INITIALIZED" if uninitialised else "CKR_GENERAL_ERROR"
    name = type(error).__name__
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).upper()
    return _SPELLINGS.get(words, f"CKR_{words}")


def code_name(code: int) -> str:
    """The name of a return code got without python-pkcs11."""
    return _NAMES.get(code, f"0x{code:08X}")


_NAMES = {
    0x2: "CKR_HOST_MEMORY",
    0x3: "CKR_SLOT_ID_INVALID",
    0x5: "CKR_GENERAL_ERROR",
    0x6: "CKR_FUNCTION_FAILED",
    0x7: "CKR_ARGUMENTS_BAD",
    0x9: "CKR_NEED_TO_CREATE_THREADS",
    0xA: "CKR_CANT_LOCK",
    0x20: "CKR_DATA_INVALID",
    0x21: "CKR_DATA_LEN_RANGE",
    0x30: "CKR_DEVICE_ERROR",
    0x31: "CKR_DEVICE_MEMORY",
    0x32: "CKR_DEVICE_REMOVED",
    0x50: "CKR_FUNCTION_CANCELED",
    0x54: "CKR_FUNCTION_NOT_SUPPORTED",
    0x60: "CKR_KEY_HANDLE_INVALID",
    0x62: "CKR_KEY_SIZE_RANGE",
    0x63: "CKR_KEY_TYPE_INCONSISTENT",
    0x68: "CKR_KEY_FUNCTION_NOT_PERMITTED",
    0x70: "CKR_MECHANISM_INVALID",
    0x71: "CKR_MECHANISM_PARAM_INVALID",
    0x82: "CKR_OBJECT_HANDLE_INVALID",
    0x90: "CKR_OPERATION_ACTIVE",
    0x91: "CKR_OPERATION_NOT_INITIALIZED",
    0xB0: "CKR_SESSION_CLOSED",
    0xB1: "CKR_SESSION_COUNT",
    0xB3: "CKR_SESSION_HANDLE_INVALID",
    0xE0: "CKR_TOKEN_NOT_PRESENT",
    0xE1: "CKR_TOKEN_NOT_RECOGNIZED",
    0x101: "CKR_USER_NOT_LOGGED_IN",
    0x150: "CKR_BUFFER_TOO_SMALL",
    0x190: "CKR_CRYPTOKI_NOT_INITIALIZED",
    0x191: "CKR_CRYPTOKI_ALREADY_INITIALIZED",
}

_SPELLINGS = {  # where python-pkcs11 spells a code otherwise than the standard
    "ANOTHER_USER_ALREADY_LOGGED_IN": "CKR_USER_ANOTHER_ALREADY_LOGGED_IN",
    "FUNCTION_CANCELLED": "CKR_FUNCTION_CANCELED",
    "TOKEN_NOT_RECOGNISED": "CKR_TOKEN_NOT_RECOGNIZED",
}

_Make = Callable[..., KmsdError]
_Meaning = tuple[_Make, str, str, str]

_REPLACE = "The process reconnects by itself; look at the HSM and its network if it does not."
_LOOK_AT_PIN = (
    "Correct the PIN file and restart by hand: tokens lock after a few wrong PINs, "
    "so it is not tried again."
)
_LOOK_AT_TEMPLATE = "Set hsm.template to what this vendor's module accepts."

_UNKNOWN: _Meaning = (Unavailable, "HSM_FAILED", "the module reported a failure", _REPLACE)
_SESSION: _Meaning = (Unavailable, "HSM_SESSION_LOST", "the session is lost", _REPLACE)
_OBJECT: _Meaning = (
    Unavailable,
    "HSM_OBJECT_LOST",
    "an object it had shown cannot be reached now",
    _REPLACE,
)
_TOKEN: _Meaning = (Unavailable, "HSM_LOST", "the token does not answer", _REPLACE)
_PIN: _Meaning = (Misconfigured, "HSM_PIN_INCORRECT", "the PIN is wrong", _LOOK_AT_PIN)
_MECHANISM: _Meaning = (
    Misconfigured,
    "HSM_MECHANISM_REFUSED",
    "it does not sign with ECDSA P-256 keys the way kmsd asks",
    "See the vendor's manual for CKM_ECDSA and CKM_EC_KEY_PAIR_GEN.",
)
_TEMPLATE: _Meaning = (
    Misconfigured,
    "HSM_TEMPLATE_REFUSED",
    "the module refuses the attributes of a new key",
    _LOOK_AT_TEMPLATE,
)
_WRITE: _Meaning = (
    Misconfigured,
    "HSM_WRITE_PROTECTED",
    "keys can neither be made nor destroyed here",
    "Let the keeper's user write to the token.",
)
_MEMORY: _Meaning = (
    Exhausted,
    "HSM_MEMORY",
    "there is no memory left",
    "Destroy keys that are no longer needed, or use a larger partition.",
)
_DATA: _Meaning = (Invalid, "HSM_DATA_REFUSED", "it refuses the digest", "Report this.")

_MEANINGS: dict[str, _Meaning] = {
    "CKR_SESSION_HANDLE_INVALID": _SESSION,
    "CKR_SESSION_CLOSED": _SESSION,
    "CKR_OPERATION_ACTIVE": _SESSION,
    "CKR_OPERATION_NOT_INITIALIZED": _SESSION,
    "CKR_OBJECT_HANDLE_INVALID": _OBJECT,
    "CKR_KEY_HANDLE_INVALID": _OBJECT,
    "CKR_USER_NOT_LOGGED_IN": (Unavailable, "HSM_LOGIN_LOST", "the login is lost", _REPLACE),
    "CKR_TOKEN_NOT_PRESENT": _TOKEN,
    "CKR_TOKEN_NOT_RECOGNIZED": _TOKEN,
    "CKR_DEVICE_REMOVED": _TOKEN,
    "CKR_DEVICE_ERROR": _TOKEN,
    "CKR_SLOT_ID_INVALID": _TOKEN,
    "CKR_GENERAL_ERROR": _TOKEN,
    "CKR_CRYPTOKI_NOT_INITIALIZED": _TOKEN,
    "CKR_PIN_INCORRECT": _PIN,
    "CKR_PIN_INVALID": _PIN,
    "CKR_PIN_LEN_RANGE": _PIN,
    "CKR_PIN_LOCKED": (
        Misconfigured,
        "HSM_PIN_LOCKED",
        "the PIN is locked",
        "Have the security officer unlock it, then restart by hand.",
    ),
    "CKR_PIN_EXPIRED": (
        Misconfigured,
        "HSM_PIN_EXPIRED",
        "the PIN has expired",
        "Set a new PIN with the vendor's program and write it to the PIN file.",
    ),
    "CKR_USER_PIN_NOT_INITIALIZED": (
        Misconfigured,
        "HSM_PIN_NOT_SET",
        "the token has no user PIN yet",
        "Finish its initialisation with the vendor's program.",
    ),
    "CKR_MECHANISM_INVALID": _MECHANISM,
    "CKR_MECHANISM_PARAM_INVALID": _MECHANISM,
    "CKR_KEY_TYPE_INCONSISTENT": _MECHANISM,
    "CKR_KEY_SIZE_RANGE": _MECHANISM,
    "CKR_KEY_FUNCTION_NOT_PERMITTED": _MECHANISM,
    "CKR_FUNCTION_NOT_SUPPORTED": _MECHANISM,
    "CKR_TEMPLATE_INCOMPLETE": _TEMPLATE,
    "CKR_TEMPLATE_INCONSISTENT": _TEMPLATE,
    "CKR_ATTRIBUTE_TYPE_INVALID": _TEMPLATE,
    "CKR_ATTRIBUTE_VALUE_INVALID": _TEMPLATE,
    "CKR_ATTRIBUTE_READ_ONLY": _TEMPLATE,
    "CKR_DOMAIN_PARAMS_INVALID": _TEMPLATE,
    "CKR_TOKEN_WRITE_PROTECTED": _WRITE,
    "CKR_SESSION_READ_ONLY": _WRITE,
    "CKR_FUNCTION_REJECTED": _WRITE,
    "CKR_DEVICE_MEMORY": _MEMORY,
    "CKR_HOST_MEMORY": _MEMORY,
    "CKR_SESSION_COUNT": (
        Exhausted,
        "HSM_SESSION_COUNT",
        "it allows no further session",
        "Lower hsm.threads or the number of signers.",
    ),
    "CKR_DATA_INVALID": _DATA,
    "CKR_DATA_LEN_RANGE": _DATA,
}
