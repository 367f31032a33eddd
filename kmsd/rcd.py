"""Rich call data (RFC 9795): the claims `rcd`, `rcdi` and `crn` of a PASSporT.

Not here: fetching icon or jCard, or computing their digests; the caller asserts them.
"""

import re
from collections.abc import Mapping

import msgspec

from kmsd import ijson
from kmsd.canonical import canonical_tn, https_url
from kmsd.errors import Invalid

TEXT_LIMIT = 256
"""Characters of nam and crn."""
JCARD_LIMIT = 8192
"""Characters of a jCard's JSON text."""
DIGEST_LIMIT = 32
"""Entries of rcdi."""


class Rcd(msgspec.Struct, frozen=True):
    """ppt "rcd": what to show of the caller; at least one of nam, apn, icn, jcd, jcl.

    nam: display name. apn: number to show (as canonical_tn takes it). icn, jcl: https URLs of
    icon and jCard. jcd: a jCard (RFC 7095) as JSON text, not together with jcl.
    rcdi: JSON pointer to "sha256-<base64>". crn: reason of the call. Empty: not there.
    """

    nam: str = ""
    apn: str = ""
    icn: str = ""
    jcd: str = ""
    jcl: str = ""
    rcdi: Mapping[str, str] = {}
    crn: str = ""


def rcd_claims(value: Rcd) -> dict[str, object]:
    """The claims this adds to a PASSporT, to be made canonical with the others.

    `rcd` always has `nam` (RFC 9795 section 5.1.1), empty when there is no name.
    Raises Invalid (RCD_INVALID, TN_INVALID, URL_INVALID) with the field.
    """
    rcd: dict[str, object] = {}
    if value.nam:
        rcd["nam"] = _text(value.nam, "nam")
    if value.apn:
        rcd["apn"] = canonical_tn(value.apn, "apn")
    if value.icn:
        rcd["icn"] = https_url(value.icn, "icn")
    if value.jcd and value.jcl:
        raise _invalid("jcd", "A jCard is given as jcd or as jcl, not both.")
    if value.jcd:
        rcd["jcd"] = _jcard(value.jcd)
    if value.jcl:
        rcd["jcl"] = https_url(value.jcl, "jcl")
    if not rcd:
        raise _invalid("rcd", "There is no rich call data: give one of nam, apn, icn, jcd, jcl.")
    rcd.setdefault("nam", "")
    claims: dict[str, object] = {"rcd": rcd}
    if value.rcdi:
        claims["rcdi"] = _digests(value.rcdi, rcd)
    if value.crn:
        claims["crn"] = _text(value.crn, "crn")
    return claims


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DIGEST = re.compile(r"sha256-[A-Za-z0-9+/_-]{43}=?")
_POINTER = re.compile(r"/([a-z]{3})((?:/(?:[^~/\x00-\x1f\ud800-\udfff]|~[01])*)*)")


def _text(text: str, field: str) -> str:
    if len(text) > TEXT_LIMIT:
        raise _invalid(field, f"{field} is longer than {TEXT_LIMIT} characters.")
    if _CONTROL.search(text):
        raise _invalid(field, f"{field} has control characters.")
    return text


def _jcard(text: str) -> object:
    if len(text) > JCARD_LIMIT:
        raise _invalid("jcd", f"The jCard is longer than {JCARD_LIMIT} characters.")
    try:
        card = ijson.read(text)
    except ijson.NotIJson as error:
        raise _invalid("jcd", f"The jCard cannot be read: {error}.") from error
    match card:
        case ["vcard", list()]:
            return card
        case _:
            raise _invalid("jcd", 'The jCard is not ["vcard", [...]] (RFC 7095 section 3.2).')


def _digests(rcdi: Mapping[str, str], rcd: Mapping[str, object]) -> dict[str, str]:
    if len(rcdi) > DIGEST_LIMIT:
        raise _invalid("rcdi", f"rcdi has more than {DIGEST_LIMIT} entries.")
    for pointer, digest in rcdi.items():
        match = _POINTER.fullmatch(pointer) if len(pointer) <= TEXT_LIMIT else None
        if match is None or match[1] not in rcd:
            raise _invalid("rcdi", f"rcdi points to {pointer[:64]!r}, which is not in rcd.")
        if not _DIGEST.fullmatch(digest):
            raise _invalid("rcdi", f"The digest of {pointer[:64]!r} is not sha256-<base64>.")
    return dict(rcdi)


def _invalid(field: str, message: str) -> Invalid:
    return Invalid("RCD_INVALID", message, field=field)
