"""What a caller asks to have signed: one frozen value for each PASSporT type.

Telephone numbers and URIs are plain text here; text with a colon is a URI (`sip:`, `sips:`,
`tel:`), everything else a telephone number in E.164, with or without "+" and separators.

Not here: any judgement of content. A value of the wrong type is a `TypeError`; what a number,
an attestation or a URL must look like only the signer decides, so that there is one judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from kmsapi.v1 import signing_pb2 as pb

Attest: TypeAlias = Literal["A", "B", "C"]
"""Attestation level (RFC 8588 section 4): full, partial, gateway."""

Dest: TypeAlias = str | Sequence[str]
"""One called identity, or several."""


@dataclass(frozen=True, slots=True)
class Shaken:
    """ppt "shaken" (RFC 8588).

    orig: the calling number or URI. dest: the called ones, at least one.
    attest: "A", "B" or "C". origid: a UUID; empty: the signer makes one.
    iat: seconds since 1970-01-01 UTC, fresh (RFC 8224 section 6.2); 0: the signer's clock.
    """

    orig: str
    dest: Dest
    attest: Attest
    origid: str = ""
    iat: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """No ppt: a base PASSporT (RFC 8225). Fields as in `Shaken`."""

    orig: str
    dest: Dest
    iat: int = 0


@dataclass(frozen=True, slots=True)
class Div:
    """ppt "div" (RFC 8946): the call was retargeted.

    orig, iat: copied from the PASSporT that was received. dest: the new target.
    div: the old target, one identity of the received `dest`.
    """

    orig: str
    dest: Dest
    div: str
    iat: int


@dataclass(frozen=True, slots=True)
class Rph:
    """ppt "rph" (RFC 8443). auth: Resource-Priority values such as "ets.0", "wps.0"."""

    orig: str
    dest: Dest
    auth: Sequence[str]
    iat: int = 0


@dataclass(frozen=True, slots=True)
class Rcd:
    """ppt "rcd" (RFC 9795): rich call data; at least one of nam, apn, icn, jcd, jcl.

    nam: display name. apn: alternate presentation number. icn: https URL of an icon.
    jcd: jCard as JSON text (RFC 7095), or jcl: https URL of one; not both.
    rcdi: JSON pointer to digest, "sha256-<base64>" (RFC 9795 section 6). crn: call reason.
    """

    orig: str
    dest: Dest
    nam: str = ""
    apn: str = ""
    icn: str = ""
    jcd: str = ""
    jcl: str = ""
    rcdi: Mapping[str, str] = field(default_factory=dict)
    crn: str = ""
    iat: int = 0


Passport: TypeAlias = Shaken | Base | Div | Rph | Rcd
"""Anything that can be signed."""


def to_message(passport: Passport) -> pb.Passport:
    """The typed claims as they travel. Raises TypeError when a field holds the wrong type."""
    message = pb.Passport()
    _fill(message, passport)
    return message


def to_wire(passport: Passport) -> bytes:
    """The typed claims as an encoded SignRequest that holds them and nothing else.

    Encoded messages that follow one another are one message (repeated fields are joined), so
    that a frame costs no more than putting these together. Raises as `to_message`.
    """
    request = pb.SignRequest()
    _fill(request.passports.add(), passport)
    return request.SerializeToString()


def _fill(message: pb.Passport, passport: Passport) -> None:
    # Field by field into a message that is there: half the cost of building one from parts.
    match passport:
        case Shaken():
            shaken = message.shaken
            shaken.attest = _attestation(passport.attest)
            shaken.origid = passport.origid
        case Base():
            message.base.SetInParent()
        case Div():
            message.div.CopyFrom(_div(passport.div))
        case Rph():
            message.rph.auth.extend(_texts("auth", passport.auth))
            message.rph.SetInParent()
        case Rcd():
            message.rcd.CopyFrom(_rcd(passport))
        case _:
            raise TypeError(
                f"a passport is a Shaken, Base, Div, Rph or Rcd, not {type(passport).__name__}"
            )
    message.iat = passport.iat
    if _is_uri("orig", passport.orig):
        message.orig_uri = passport.orig
    else:
        message.orig_tn = passport.orig
    for dest in _texts("dest", passport.dest):
        (message.dest_uri if _is_uri("dest", dest) else message.dest_tn).append(dest)


_ATTESTATION: Final = {
    "A": pb.ATTESTATION_A,
    "B": pb.ATTESTATION_B,
    "C": pb.ATTESTATION_C,
}


def _attestation(attest: str) -> pb.Attestation.ValueType:
    """Text that is no level travels as UNSPECIFIED, which the signer refuses in its own words."""
    if not isinstance(attest, str):
        raise TypeError(f'attest is the text "A", "B" or "C", not {type(attest).__name__}')
    return _ATTESTATION.get(attest, pb.ATTESTATION_UNSPECIFIED)


def _div(div: str) -> pb.Div:
    return pb.Div(uri=div) if _is_uri("div", div) else pb.Div(tn=div)


def _rcd(rcd: Rcd) -> pb.Rcd:
    return pb.Rcd(
        nam=rcd.nam,
        apn=rcd.apn,
        icn=rcd.icn,
        jcd=rcd.jcd,
        jcl=rcd.jcl,
        rcdi=rcd.rcdi,
        crn=rcd.crn,
    )


def _is_uri(field_name: str, text: str) -> bool:
    if not isinstance(text, str):
        raise TypeError(f"{field_name} is text, not {type(text).__name__}")
    return ":" in text


def _texts(field_name: str, texts: str | Sequence[str]) -> Sequence[str]:
    """One text or several. A text is itself a sequence of texts: the classic trap."""
    match texts:
        case str():
            return (texts,)
        case list() | tuple():
            return texts
        case _:
            raise TypeError(f"{field_name} is text or a list of it, not {type(texts).__name__}")
