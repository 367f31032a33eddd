"""Initialises a SoftHSM token with PINs read from files; see `init-token`, which calls it.

    init_token.py MODULE LABEL SO_PIN_FILE PIN_FILE

Makes the calls PKCS#11 v2.40 section 5.5 and 5.7 prescribe: C_InitToken on the first slot
whose token is not initialised, then C_InitPIN in a security officer's session. A token of
that label that is there already is left alone. Standard library only: this runs before
anything is installed. Not for real HSMs, whose vendors have their own ceremony.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

CKF_SERIAL_RW = 0x6
CKF_TOKEN_INITIALIZED = 0x400
CKU_SO = 0
LABEL_BYTES = 32
TOKEN_INFO_BYTES = 256  # CK_TOKEN_INFO is 160 to 208 bytes
FLAGS_OFFSET = 96  # after label[32] manufacturerID[32] model[16] serialNumber[16]


def main(module: str, label: str, so_pin_file: str, pin_file: str) -> None:
    padded = label.encode()
    if not 1 <= len(padded) <= LABEL_BYTES:
        sys.exit(f"{sys.argv[0]}: a token label has 1 to {LABEL_BYTES} bytes.")
    padded = padded.ljust(LABEL_BYTES)
    so_pin, pin = Path(so_pin_file).read_bytes(), Path(pin_file).read_bytes()
    call = calls(ctypes.CDLL(module))
    call("C_Initialize", None)
    found = list(slots(call))
    if padded in (name for _, name, initialised in found if initialised):
        return
    slot = next(slot for slot, _, initialised in found if not initialised)
    call("C_InitToken", slot, so_pin, ctypes.c_ulong(len(so_pin)), padded)
    session = ctypes.c_ulong()
    flags = ctypes.c_ulong(CKF_SERIAL_RW)
    call("C_OpenSession", slot, flags, None, None, ctypes.byref(session))
    call("C_Login", session, ctypes.c_ulong(CKU_SO), so_pin, ctypes.c_ulong(len(so_pin)))
    call("C_InitPIN", session, pin, ctypes.c_ulong(len(pin)))
    call("C_Finalize", None)


def calls(library: ctypes.CDLL) -> Callable[..., None]:
    """The module's functions by name; a return code other than CKR_OK ends the program."""

    def call(name: str, *arguments: object) -> None:
        code = getattr(library, name)(*arguments)
        if code:
            sys.exit(f"{sys.argv[0]}: {name} answered 0x{code & 0xFFFFFFFF:08X}.")

    return call


def slots(call: Callable[..., None]) -> Iterator[tuple[ctypes.c_ulong, bytes, bool]]:
    """Every slot's id, its token's padded label, and whether that token is initialised."""
    present = ctypes.c_ubyte(1)
    count = ctypes.c_ulong()
    call("C_GetSlotList", present, None, ctypes.byref(count))
    found = (ctypes.c_ulong * count.value)()
    call("C_GetSlotList", present, found, ctypes.byref(count))
    for slot in map(ctypes.c_ulong, found):
        info = ctypes.create_string_buffer(TOKEN_INFO_BYTES)
        call("C_GetTokenInfo", slot, info)
        flags = ctypes.c_ulong.from_buffer(info, FLAGS_OFFSET).value
        yield slot, info.raw[:LABEL_BYTES], bool(flags & CKF_TOKEN_INITIALIZED)


if __name__ == "__main__":
    main(*sys.argv[1:])
