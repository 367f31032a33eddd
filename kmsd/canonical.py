"""Identities and URLs in their one canonical form, as PASSporTs carry them.

Telephone numbers by RFC 8224 section 8.3, URIs by section 8.5. Not here: deciding which number
a SIP request means (P-Asserted-Identity, From, local dialling plans): that is the STI-AS's job.
Everything returned is ASCII that needs no escape in JSON.
"""

import re

from kmsd.errors import Invalid

URI_LIMIT = 256
"""Characters of a SIP URI."""
URL_LIMIT = 2048
"""Characters of an https URL."""


def canonical_tn(text: str, field: str = "tn") -> str:
    """E.164 without "+": 1 to 15 digits, the first not 0. Raises Invalid (TN_INVALID).

    text: with or without "+" and visual separators (- . ( ) and space).
    """
    if _E164.fullmatch(text):
        return text
    return _stripped_tn(text, _E164, field, "1 to 15 digits that begin with a country code")


def canonical_dest_tn(text: str, field: str = "dest") -> str:
    """As canonical_tn, but # and * may be dialled too: service numbers. Raises Invalid."""
    if _E164.fullmatch(text):
        return text
    return _stripped_tn(text, _DIALLED, field, "1 to 15 of 0-9, # and *, and does not begin with 0")


def canonical_uri(text: str, field: str = "uri") -> str:
    """scheme:user@host of a SIP URI, in lower case. Raises Invalid (URI_INVALID).

    Password, port, parameters and headers are dropped, and percent-escapes of unreserved
    characters decoded. urn:service (RFC 5031, emergency calls) is taken as it is, in lower case.
    """
    if len(text) <= URI_LIMIT:
        if match := _SIP.fullmatch(text):
            scheme, user, host = match.groups()
            user = _ESCAPE.sub(_unescaped, user.lower())
            return f"{scheme.lower()}:{user}@{host.lower()}"
        if _SERVICE.fullmatch(text):
            return text.lower()
    raise Invalid(
        "URI_INVALID",
        f"{_shown(text)} is no URI that can be signed: sip:user@host, or urn:service:....",
        next_step="A telephone number belongs into the field for numbers, without `tel:`.",
        field=field,
    )


def https_url(text: str, field: str) -> str:
    """`text` when it is an https URL of printable ASCII. Raises Invalid (URL_INVALID)."""
    if len(text) > URL_LIMIT or not _HTTPS.fullmatch(text):
        raise Invalid("URL_INVALID", f"{_shown(text)} is no https URL.", field=field)
    return text


def x5u_url(text: str) -> str:
    """`text` when it can be an x5u: an https URL with no user, parameter, query or fragment.

    Raises Invalid (X5U_INVALID). ATIS-1000074 5.3.1 further wants port 443 or 8443; which ports
    are in use is configuration and not checked here.
    """
    if len(text) > URL_LIMIT or not _X5U.fullmatch(text):
        raise Invalid(
            "X5U_INVALID",
            f"{_shown(text)} is no x5u: an https URL with neither user nor parameters, query"
            " or fragment.",
            field="x5u",
        )
    return text


_E164 = re.compile(r"[1-9][0-9]{0,14}")
_DIALLED = re.compile(r"[1-9#*][0-9#*]{0,14}")
_SEPARATORS = str.maketrans("", "", "-.() ")
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9-]+)*\.?|\[[0-9A-Fa-f:.]+\])"
# ASCII: else the long s is an s, the Kelvin sign a k, and one name has two spellings.
_ANY_CASE = re.IGNORECASE | re.ASCII
# RFC 3261 section 25.1: unreserved, escaped and user-unreserved, then what is dropped.
_USER = r"(?:[A-Za-z0-9_.!~*'()&=+$,;?/-]|%[0-9A-Fa-f]{2})+"
_DROPPED = r"(?::[0-9]{1,5})?(?:[;?][A-Za-z0-9_.!~*'()\[\]/?:&+$;=%-]*)?"
_SIP = re.compile(
    rf"(sips?):({_USER})(?::[A-Za-z0-9_.!~*'()&=+$,%-]*)?@({_HOST}){_DROPPED}", _ANY_CASE
)
_SERVICE = re.compile(r"urn:service:[a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*", _ANY_CASE)
_ESCAPE = re.compile(r"%([0-9a-f]{2})")
_AUTHORITY = rf"https://{_HOST}(?::[0-9]{{1,5}})?"
_HTTPS = re.compile(rf"{_AUTHORITY}(?:[/?][A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?")
_X5U = re.compile(rf"{_AUTHORITY}/[A-Za-z0-9._~!$&'()*+,=:@%/-]*")


def _stripped_tn(text: str, syntax: re.Pattern[str], field: str, wanted: str) -> str:
    if len(text) <= 64:
        bare = text.translate(_SEPARATORS).removeprefix("+")
        if syntax.fullmatch(bare):
            return bare
    raise Invalid(
        "TN_INVALID",
        f"{_shown(text)} is no telephone number: {wanted}.",
        next_step="Complete a national number with its country code.",
        field=field,
    )


def _unescaped(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    if re.fullmatch(r"[A-Za-z0-9._~-]", character):
        return character.lower()
    return escape[0].upper()  # RFC 3986 section 6.2.2.1


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:64] + "...")
