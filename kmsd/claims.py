"""A kmsapi.v1.Passport as typed claims. The one place that knows both; no rule is checked here
but that something was said at all (`passport` is the judge of what).
"""

from typing import Final

from kmsapi.v1 import signing_pb2

from kmsd.errors import Invalid
from kmsd.passport import Base, Claims, Div, Rph, Shaken, Tn, Uri
from kmsd.rcd import Rcd

_ATTEST: Final = {1: "A", 2: "B", 3: "C"}


def claims_of(message: signing_pb2.Passport) -> tuple[Claims, str, str]:
    """The claims, the PASSporT type (`base` for none) and the attestation ("" for none).

    Raises Invalid: ORIG_MISSING, TYPE_MISSING, ATTEST_INVALID, DIV_MISSING.
    """
    # A hot path: what is nearly always there is looked for first, what nearly never is not copied.
    orig: Tn | Uri
    match "orig_tn" if message.orig_tn else message.WhichOneof("orig"):
        case "orig_tn":
            orig = Tn(message.orig_tn)
        case "orig_uri":
            orig = Uri(message.orig_uri)
        case _:
            raise _missing("ORIG_MISSING", "orig", "a calling number or URI")
    ppt = message.WhichOneof("type")
    attest = ""
    kind: Shaken | Base | Div | Rph | Rcd
    match ppt:
        case "shaken":
            shaken = message.shaken
            attest = _ATTEST.get(shaken.attest, "")
            if not attest:
                raise _missing("ATTEST_INVALID", "attest", "an attestation: A, B or C")
            kind = Shaken(attest, shaken.origid)
        case "base":
            kind = Base()
        case "div":
            kind = Div(_diverted(message.div))
        case "rph":
            kind = Rph(tuple(message.rph.auth))
        case "rcd":
            kind = _rich(message.rcd)
        case _:
            raise _missing("TYPE_MISSING", "type", "a type: shaken, base, div, rph or rcd")
    uris = message.dest_uri
    dest_uri = tuple(uris) if uris else ()
    return Claims(orig, tuple(message.dest_tn), dest_uri, message.iat, kind), ppt, attest


def _diverted(message: signing_pb2.Div) -> Tn | Uri:
    match message.WhichOneof("div"):
        case "tn":
            return Tn(message.tn)
        case "uri":
            return Uri(message.uri)
        case _:
            raise _missing("DIV_MISSING", "div", "the number or URI the call was diverted from")


def _rich(message: signing_pb2.Rcd) -> Rcd:
    return Rcd(
        nam=message.nam,
        apn=message.apn,
        icn=message.icn,
        jcd=message.jcd,
        jcl=message.jcl,
        rcdi=dict(message.rcdi),
        crn=message.crn,
    )


def _missing(reason: str, field: str, what: str) -> Invalid:
    return Invalid(reason, f"This PASSporT needs {what}.", field=field)
