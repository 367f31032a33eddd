"""Loads a PKCS#11 module and initialises it for threads (PKCS#11 v2.40 sections 5.1 and 5.4).

python-pkcs11 calls `C_Initialize(NULL)`, which promises the module that one thread at a time
will call it, and then releases the GIL around every call: two signing threads crash SoftHSM.
So the module is initialised here, through ctypes, with CKF_OS_LOCKING_OK, before python-pkcs11
sees it. The calls that library lacks or hides, C_GetSessionInfo and C_Finalize, are here as well,
and the one that every signature pays for: C_SignInit and C_Sign without its wrapping, which calls
C_Sign twice (a network HSM would be asked twice) and costs a tenth of a SoftHSM signature.
"""

import ctypes
from pathlib import Path

from pkcs11 import PKCS11Error, _pkcs11

from kmsd.errors import Misconfigured, Unavailable
from kmsd.hsm.failures import code_name, translate


class Module:
    """An initialised module; one at a time in a process. `load` makes it, `finalize` ends it.

    library: its python-pkcs11 wrapper. threaded: it may be called by several threads at once.
    """

    def __init__(
        self, functions: "_Functions", library: "_InitializedLibrary", *, threaded: bool
    ) -> None:
        self._functions = functions
        self.library = library
        self.threaded = threaded

    def logged_in(self, session: int) -> bool:
        """Whether the session with that handle lives and has its user logged in. Cheap."""
        info = _SessionInfo()
        if self._functions.session_info(session, ctypes.byref(info)) != _CKR_OK:
            return False
        return info.state in _USER_STATES

    def signing(self, session: int) -> "Signing":
        """Signing in the session with that handle, for the one thread that uses it."""
        return Signing(self._functions, session)

    def finalize(self) -> None:
        """Ends every session and the login. No thread may be inside the module: it would crash.

        A token that was lost is found again only after this and another `load`.
        """
        self._functions.finalize(None)


class Signing:
    """C_SignInit(CKM_ECDSA) and C_Sign in one session. Not thread-safe.

    Everything the calls need is allocated once: a call builds no object but its signature.
    """

    __slots__ = ("_buffer", "_init", "_length", "_mechanism", "_session", "_sign", "_size")

    def __init__(self, functions: "_Functions", session: int) -> None:
        self._init, self._sign = functions.sign_init, functions.sign
        self._session = ctypes.c_ulong(session)
        self._mechanism = ctypes.byref(_Mechanism(_CKM_ECDSA, None, 0))
        self._buffer = ctypes.create_string_buffer(_LONGEST_SIGNATURE)
        self._size = ctypes.c_ulong()
        self._length = ctypes.byref(self._size)

    def __call__(self, key: ctypes.c_ulong, digest: bytes) -> bytes | int:
        """What the module returns for a digest of 32 bytes, or its CKR code.

        key: handle of the private key.
        """
        code: int = self._init(self._session, self._mechanism, key)
        if code != _CKR_OK:
            return code
        self._size.value = _LONGEST_SIGNATURE
        code = self._sign(self._session, digest, _DIGEST_BYTES, self._buffer, self._length)
        if code != _CKR_OK:
            return code
        return self._buffer.raw[: self._size.value]


def load(path: str) -> Module:
    """Loads and initialises the module at `path`, or by name where the linker finds it.

    Raises Misconfigured when there is no such file, it cannot be loaded, or is no PKCS#11
    module, or when this process has it initialised already; Unavailable when it fails.
    """
    if "/" in path and not Path(path).is_file():
        raise Misconfigured(
            "HSM_MODULE_MISSING",
            f"There is no PKCS#11 module {path}.",
            next_step="Install the HSM's client software, or correct hsm.module.",
        )
    try:
        functions = _Functions(ctypes.CDLL(path))
    except OSError as error:
        raise Misconfigured(
            "HSM_MODULE_NOT_LOADABLE",
            f"The PKCS#11 module {path} cannot be loaded: {error}.",
            next_step="Check that it was built for this machine and that its libraries are there.",
        ) from error
    except AttributeError:
        raise Misconfigured(
            "HSM_MODULE_NOT_PKCS11",
            f"{path} is a library, but not a PKCS#11 module: it has no C_GetFunctionList.",
            next_step="Correct hsm.module; the HSM's manual names the file.",
        ) from None
    threaded = _initialize(functions, path)
    try:
        return Module(functions, _InitializedLibrary(path), threaded=threaded)
    except PKCS11Error as error:
        functions.finalize(None)
        raise translate(error, path) from error


def _initialize(functions: "_Functions", path: str) -> bool:
    """Calls C_Initialize; returns whether several threads may use the module."""
    threaded = True
    code = functions.initialize(ctypes.byref(_InitializeArgs(flags=_CKF_OS_LOCKING_OK)))
    if code in _WITHOUT_LOCKING:
        threaded = False
        code = functions.initialize(None)
    if code == _CKR_CRYPTOKI_ALREADY_INITIALIZED:
        raise Misconfigured(
            "HSM_MODULE_IN_USE",
            f"The PKCS#11 module {path} is open in this process already.",
            next_step="Close the other Hsm first: a process has one login.",
        )
    if code != _CKR_OK:
        raise Unavailable(
            "HSM_MODULE_FAILED",
            f"The PKCS#11 module {path} does not start ({code_name(code)}).",
            next_step="Check the module's own configuration (hsm.environment) and its log.",
            ckr=code_name(code),
        )
    return threaded


class _InitializedLibrary(_pkcs11.lib):
    """python-pkcs11's library, kept from initialising the module a second time.

    It therefore does not finalize it either: `Module.finalize` does.
    """

    def initialize(self) -> None:
        """Nothing left to do."""


class _Functions:
    """The functions called past python-pkcs11, from the module's CK_FUNCTION_LIST.

    Only C_GetFunctionList is sure to be exported by name (section 5.4).
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        get_function_list = library.C_GetFunctionList
        get_function_list.restype = ctypes.c_ulong
        table = ctypes.POINTER(_FunctionList)()
        code = get_function_list(ctypes.byref(table))
        if code != _CKR_OK or not table:
            raise OSError(f"C_GetFunctionList answered {code_name(code)}")
        entries = table.contents
        self.initialize = _Pointer(entries.C_Initialize)
        self.finalize = _Pointer(entries.C_Finalize)
        self.session_info = _SessionCall(entries.C_GetSessionInfo)
        self.sign_init = _SignInitCall(entries.C_SignInit)
        self.sign = _SignCall(entries.C_Sign)


_CKR_OK = 0
_CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191
_CKF_OS_LOCKING_OK = 0x2
# CKR_CANT_LOCK, CKR_NEED_TO_CREATE_THREADS, and CKR_ARGUMENTS_BAD from those that know no flags
_WITHOUT_LOCKING = frozenset({0xA, 0x9, 0x7})
_USER_STATES = frozenset({1, 3})  # CKS_RO_USER_FUNCTIONS, CKS_RW_USER_FUNCTIONS

_Pointer = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)
_SessionCall = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p)
_SignInitCall = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong)
_SignCall = ctypes.CFUNCTYPE(
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
    ctypes.c_void_p,
)
_CKM_ECDSA = 0x1041
_DIGEST_BYTES = ctypes.c_ulong(32)
_LONGEST_SIGNATURE = 144  # raw or DER


class _Mechanism(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = (
        ("mechanism", ctypes.c_ulong),
        ("pParameter", ctypes.c_void_p),
        ("ulParameterLen", ctypes.c_ulong),
    )


class _InitializeArgs(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS: no mutex functions of our own, only flags."""

    _fields_ = (
        ("CreateMutex", ctypes.c_void_p),
        ("DestroyMutex", ctypes.c_void_p),
        ("LockMutex", ctypes.c_void_p),
        ("UnlockMutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("pReserved", ctypes.c_void_p),
    )


class _SessionInfo(ctypes.Structure):
    """CK_SESSION_INFO."""

    _fields_ = (
        ("slotID", ctypes.c_ulong),
        ("state", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("ulDeviceError", ctypes.c_ulong),
    )


class _FunctionList(ctypes.Structure):
    """The beginning of CK_FUNCTION_LIST, in the standard's order."""

    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "C_Initialize",
                "C_Finalize",
                "C_GetInfo",
                "C_GetFunctionList",
                "C_GetSlotList",
                "C_GetSlotInfo",
                "C_GetTokenInfo",
                "C_GetMechanismList",
                "C_GetMechanismInfo",
                "C_InitToken",
                "C_InitPIN",
                "C_SetPIN",
                "C_OpenSession",
                "C_CloseSession",
                "C_CloseAllSessions",
                "C_GetSessionInfo",
                "C_GetOperationState",
                "C_SetOperationState",
                "C_Login",
                "C_Logout",
                "C_CreateObject",
                "C_CopyObject",
                "C_DestroyObject",
                "C_GetObjectSize",
                "C_GetAttributeValue",
                "C_SetAttributeValue",
                "C_FindObjectsInit",
                "C_FindObjects",
                "C_FindObjectsFinal",
                "C_EncryptInit",
                "C_Encrypt",
                "C_EncryptUpdate",
                "C_EncryptFinal",
                "C_DecryptInit",
                "C_Decrypt",
                "C_DecryptUpdate",
                "C_DecryptFinal",
                "C_DigestInit",
                "C_Digest",
                "C_DigestUpdate",
                "C_DigestKey",
                "C_DigestFinal",
                "C_SignInit",
                "C_Sign",
            )
        ),
    )
