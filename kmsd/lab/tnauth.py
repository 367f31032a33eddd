"""TNAuthList of one service provider code, as DER and as text.

RFC 8226 section 9 for the DER, RFC 9448 section 3 against field practice for the text.
Written by hand and on its own: the lab is a second reading of the standards, so it shares no
code with what it tests. It knows exactly one shape, because an STI certificate may have no
other (ATIS-1000080 6.4.1: one TNEntry, an SPC).
"""

import base64
import binascii
import re

OID = "1.3.6.1.5.5.7.1.26"

_SPC = re.compile(r"[0-9A-Z]{1,32}")
_SEQUENCE, _SPC_TAG, _IA5STRING = 0x30, 0xA0, 0x16


def encode_spc(spc: str) -> bytes:
    """DER of a TNAuthorizationList with the one entry `spc` (digits and upper-case letters)."""
    if not _SPC.fullmatch(spc):
        raise ValueError(f"{spc!r} is no service provider code")
    return _tlv(_SEQUENCE, _tlv(_SPC_TAG, _tlv(_IA5STRING, spc.encode("ascii"))))


def read_spc(der: bytes) -> str:
    """The one service provider code in `der`. Raises ValueError when it is anything else."""
    body = der[6:]
    try:
        spc = body.decode("ascii")
        same = der == encode_spc(spc)
    except ValueError as error:
        raise ValueError("not a TNAuthList of exactly one service provider code") from error
    if not same:
        raise ValueError("not a TNAuthList of exactly one service provider code")
    return spc


def read_text(text: str, encoding: str) -> bytes:
    """DER out of an identifier value or tkvalue.

    encoding: "base64url" (RFC 9448: padding forbidden), "base64" (field practice: padding
    required) or "either". Raises ValueError.
    """
    match encoding:
        case "base64url":
            return _base64url(text)
        case "base64":
            return _base64(text)
        case _:
            try:
                return _base64url(text)
            except ValueError:
                return _base64(text)


def _base64url(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError("not base64url without padding (RFC 9448 section 3)")
    try:
        der = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url without padding (RFC 9448 section 3)") from error
    if base64.urlsafe_b64encode(der).decode("ascii").rstrip("=") != text:
        raise ValueError("not base64url: there are stray bits at its end (RFC 4648 section 3.5)")
    return der


def _base64(text: str) -> bytes:
    try:
        der = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64 with padding") from error
    if base64.b64encode(der).decode("ascii") != text:
        raise ValueError("not base64: there are stray bits at its end (RFC 4648 section 3.5)")
    return der


def _tlv(tag: int, content: bytes) -> bytes:
    return bytes((tag, len(content))) + content
