"""An Identity header value (RFC 8224 section 4) taken apart, strictly.

Not here: building one (`passport`), and whether what it says is to be believed
(`verification`): neither claims nor signature are checked.
"""

import re

import msgspec

from kmsd import ijson
from kmsd.canonical import x5u_url
from kmsd.errors import Invalid
from kmsd.jose import b64url_decode

IDENTITY_LIMIT = 32768
"""Characters of an Identity header value that are looked at."""


class ParsedIdentity(msgspec.Struct, frozen=True):
    """An Identity header value taken apart; nothing in it is believed yet.

    ppt: "base" when there is none. claims: the payload as JSON. signature: whatever octets.
    """

    alg: str
    ppt: str
    typ: str
    x5u: str
    claims: dict[str, object]
    signing_input: bytes
    signature: bytes


def parse(identity_value: str) -> ParsedIdentity:
    """The parts of an Identity header value, in full form. Order of parameters is free.

    Raises Invalid: IDENTITY_TOO_LARGE, IDENTITY_MALFORMED, COMPACT_FORM, PPT_MISMATCH,
    INFO_INVALID, HEADER_MALFORMED, INFO_MISMATCH, ALG_MISMATCH, PAYLOAD_MALFORMED.
    """
    if len(identity_value) > IDENTITY_LIMIT:
        message = f"The Identity header is longer than {IDENTITY_LIMIT} characters."
        raise Invalid("IDENTITY_TOO_LARGE", message, field="identity")
    token = _TOKEN.match(identity_value)
    if token is None:
        raise _unreadable("IDENTITY_MALFORMED", "it does not begin with a token")
    parameters = _parameters(identity_value[token.end() :])
    header_text, payload_text, signature_text = token.groups()
    if not header_text or not payload_text:
        raise _unreadable("COMPACT_FORM", "it has the compact form, which cannot be verified here")
    info = _info(parameters)
    header = _header(_octets(header_text, "HEADER_MALFORMED"))
    if header.x5u != info:
        raise _unreadable("INFO_MISMATCH", "info and the token's x5u differ")
    if parameters.get("ppt", "base").strip('"') != header.ppt:
        raise _unreadable("PPT_MISMATCH", "the ppt parameter and the token's ppt differ")
    if parameters.get("alg", header.alg).strip('"') != header.alg:
        raise _unreadable("ALG_MISMATCH", "the alg parameter and the token's alg differ")
    return ParsedIdentity(
        header.alg,
        header.ppt,
        header.typ,
        header.x5u,
        _object(_octets(payload_text, "PAYLOAD_MALFORMED"), "PAYLOAD_MALFORMED"),
        f"{header_text}.{payload_text}".encode("ascii"),
        _octets(signature_text, "IDENTITY_MALFORMED"),
    )


_TOKEN = re.compile(r"([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]+)")
_PARAMETER = re.compile(
    r"[ \t]*;[ \t]*([A-Za-z0-9!%*_+`'~.-]+)"
    r"""(?:[ \t]*=[ \t]*(<[^<>"\s]*>|"[^"\\\r\n]*"|[A-Za-z0-9!%*_+`'~.-]+))?"""
)


class _Header(msgspec.Struct, frozen=True):
    alg: str
    typ: str
    x5u: str
    ppt: str = "base"


def _header(data: bytes) -> _Header:
    members = _object(data, "HEADER_MALFORMED")
    if "crit" in members:
        raise _unreadable("HEADER_MALFORMED", "its header has critical members")
    if members.get("ppt") == "base":  # our word for no ppt
        raise _unreadable("HEADER_MALFORMED", "its header has an unknown ppt")
    try:
        return msgspec.convert(members, _Header)
    except msgspec.ValidationError as error:
        raise _unreadable("HEADER_MALFORMED", f"its header: {error}") from error


def _parameters(text: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    end = 0
    while end < len(text):
        match = _PARAMETER.match(text, end)
        if match is None or match[1].lower() in parameters:
            raise _unreadable("IDENTITY_MALFORMED", "its parameters are malformed or repeated")
        parameters[match[1].lower()] = match[2] or ""
        end = match.end()
    return parameters


def _info(parameters: dict[str, str]) -> str:
    info = parameters.get("info", "")
    if not info.startswith("<"):
        raise _unreadable("INFO_INVALID", "it has no info=<URL>")
    try:
        return x5u_url(info[1:-1])
    except Invalid as error:
        raise _unreadable("INFO_INVALID", "its info is no https URL that can be an x5u") from error


def _octets(segment: str, reason: str) -> bytes:
    try:
        return b64url_decode(segment)
    except Invalid as error:
        raise _unreadable(reason, "a segment of its token is not base64url") from error


def _object(data: bytes, reason: str) -> dict[str, object]:
    try:
        value = ijson.read(data)
    except ijson.NotIJson as error:
        raise _unreadable(reason, f"its token cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise _unreadable(reason, "its token holds no JSON object")
    return value


def _unreadable(reason: str, why: str) -> Invalid:
    return Invalid(reason, f"The Identity header is invalid: {why}.", field="identity")
