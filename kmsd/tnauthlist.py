"""TNAuthorizationList (RFC 8226 section 9): what a STIR certificate may sign for.

DER in the certificate, text in an ACME identifier and an SPC token (RFC 9448 section 3). Two
texts of one list may differ in alphabet and padding, so lists are compared as DER.
It is not the policy of which lists are acceptable: a SHAKEN certificate has exactly one SPC,
and that rule lives in the acceptance gate. Malformed input of any kind raises Invalid.
"""

import base64
import re
from typing import Any

import msgspec
from asn1crypto import core

from kmsd.errors import Invalid
from kmsd.settings import Encoding

OID = "1.3.6.1.5.5.7.1.26"
"""id-pe-TNAuthList."""

LIMIT = 16384
"""Bytes of DER that are looked at; text may be a third longer."""


class Spc(msgspec.Struct, frozen=True):
    """A service provider code: IA5 text, at least one character."""

    code: str


class Range(msgspec.Struct, frozen=True):
    """`count` (2 or more) consecutive numbers from `start`, all as long as `start`: 1-15 digits."""

    start: str
    count: int


class One(msgspec.Struct, frozen=True):
    """A single telephone number: 1 to 15 of 0-9, # and *."""

    number: str


Entry = Spc | Range | One


class TnAuthList(msgspec.Struct, frozen=True):
    """The scope of a certificate: the union of one or more entries."""

    entries: tuple[Entry, ...]


def spc_list(spc: str) -> bytes:
    """The DER list with this one SPC. Raises Invalid (SPC_INVALID)."""
    return encode(TnAuthList((Spc(check_spc(spc)),)))


def check_spc(text: str) -> str:
    """`text` when it is an SPC as ATIS-1000080 6.4.1 has it: digits and upper-case letters.

    Raises Invalid (SPC_INVALID). US codes have four characters; other countries may differ.
    """
    if not _SPC.fullmatch(text):
        raise Invalid(
            "SPC_INVALID",
            f"{_shown(text)} is no service provider code: 1 to 16 digits and upper-case letters.",
            field="spc",
        )
    return text


def encode(value: TnAuthList) -> bytes:
    """The list as DER. Raises Invalid (TNAUTHLIST_INVALID) when an entry breaks its syntax."""
    if not value.entries:
        raise _invalid("it has no entries")
    entries = _Entries([_to_asn1(_checked(entry)) for entry in value.entries])
    return bytes(entries.dump())


def decode(der: bytes) -> TnAuthList:
    """The list in this DER. Raises Invalid (TNAUTHLIST_INVALID).

    Elements that follow `count` in a range are passed over: its ASN.1 is extensible.
    """
    if len(der) > LIMIT:
        raise _invalid(f"it is longer than {LIMIT} bytes")
    try:
        entries = _Entries.load(der, strict=True)
        read = [_from_asn1(entry) for entry in entries]
        value = TnAuthList(tuple(_checked(entry) for entry, _ in read))
        canonical = bytes(_Entries([_to_asn1(entry, *later) for entry, later in read]).dump())
    except (ValueError, TypeError) as error:
        raise _invalid("it is not the DER of RFC 8226 section 9") from error
    if not value.entries:
        raise _invalid("it has no entries")
    if canonical != der:
        raise _invalid("it is BER, not DER")
    return value


def to_text(der: bytes, encoding: Encoding) -> str:
    """The text of a list: base64url without padding (RFC 9448), or base64 with (the field)."""
    if encoding is Encoding.BASE64:
        return base64.b64encode(der).decode("ascii")
    return base64.urlsafe_b64encode(der).decode("ascii").rstrip("=")


def from_text(text: str) -> bytes:
    """The DER in this text, whichever alphabet, padded or not.

    Raises Invalid (TNAUTHLIST_INVALID), also when the DER is no list.
    """
    if len(text) > LIMIT * 4 // 3 + 4 or not _BASE64.fullmatch(text):
        raise _invalid("its text is neither base64url nor base64")
    digits = text.rstrip("=").translate(_TO_BASE64)
    if len(digits) % 4 == 1 or (len(text) != len(digits) and len(text) % 4):
        raise _invalid("its text is cut short")
    der = base64.b64decode(digits + "=" * (-len(digits) % 4))
    if base64.b64encode(der).decode("ascii").rstrip("=") != digits:
        raise _invalid("its text has stray bits at the end")
    decode(der)
    return der


_SPC = re.compile(r"[0-9A-Z]{1,16}")
_DIGITS = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[0-9#*]{1,15}")
_BASE64 = re.compile(r"(?:[A-Za-z0-9_-]*|[A-Za-z0-9+/]*)={0,2}")
_TO_BASE64 = str.maketrans("-_", "+/")


class _RangeElements(core.SequenceOf):  # type: ignore[misc]  # asn1crypto is untyped
    # Not a core.Sequence: that refuses the elements a later version may append.
    _child_spec = core.Any


class _Entry(core.Choice):  # type: ignore[misc]
    # The module's tags are EXPLICIT: a constructed context tag around a universal one.
    _alternatives = [  # noqa: RUF012  asn1crypto wants a list here
        ("spc", core.IA5String, {"explicit": 0}),
        ("range", _RangeElements, {"explicit": 1}),
        ("one", core.IA5String, {"explicit": 2}),
    ]


class _Entries(core.SequenceOf):  # type: ignore[misc]
    _child_spec = _Entry


def _to_asn1(entry: Entry, *later: Any) -> Any:
    # `later`: what follows `count` in a range, kept as it came.
    match entry:
        case Spc(code):
            return _Entry("spc", core.IA5String(code))
        case One(number):
            return _Entry("one", core.IA5String(number))
        case _:
            start, count = core.IA5String(entry.start), core.Integer(entry.count)
            elements = _RangeElements([core.Any(start), core.Any(count), *later])
            return _Entry("range", elements)


def _from_asn1(entry: Any) -> tuple[Entry, tuple[Any, ...]]:
    match entry.name:
        case "spc":
            return Spc(entry.chosen.native), ()
        case "one":
            return One(entry.chosen.native), ()
        case _:
            start, count, *later = entry.chosen
            first = start.parse(core.IA5String).native
            return Range(first, count.parse(core.Integer).native), tuple(later)


def _checked(entry: Entry) -> Entry:
    match entry:
        case Spc(code) if not (code and code.isascii()):
            raise _invalid("an SPC in it is empty or not IA5 text")
        case One(number) if not _NUMBER.fullmatch(number):
            raise _invalid("a number in it is not 1 to 15 of 0-9, # and *")
        case Range(start, count) if not _DIGITS.fullmatch(start) or count < 2:
            raise _invalid("a range in it has no plain start or fewer than 2 numbers")
        case Range(start, count) if int(start) + count > 10 ** len(start):
            raise _invalid("a range in it runs past the numbers as long as its start")
        case _:
            return entry


def _invalid(what: str) -> Invalid:
    message = f"The TNAuthList is malformed: {what}."
    return Invalid("TNAUTHLIST_INVALID", message, field="tnauthlist")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 32 else text[:32] + "...")
