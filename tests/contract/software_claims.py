"""Claims as the software signer reads them off the wire, written from the RFCs alone."""

import base64
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import grpc
from kmsapi.v1 import signing_pb2 as pb

FRESHNESS = 60
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@dataclass
class Refusal(Exception):
    """What this signer says no with."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float = 0.0
    domain: str = "kmsd"


def claims_of(passport: pb.Passport) -> tuple[dict[str, Any], str]:
    """The claims, and the `ppt` ("": none). Raises Refusal."""
    now, kind = int(time.time()), passport.WhichOneof("type")
    if kind is None:
        raise Refusal(INVALID, "TYPE_MISSING", "A PASSporT needs a type.", {"field": "type"})
    iat = passport.iat or now
    if kind != "div" and abs(iat - now) > FRESHNESS:
        raise Refusal(INVALID, "IAT_NOT_FRESH", "The iat is not fresh.", {"field": "iat"})
    dest = {"tn": [_tn("dest", tn) for tn in passport.dest_tn], "uri": list(passport.dest_uri)}
    if not any(dest.values()):
        raise Refusal(INVALID, "DEST_MISSING", "There is no dest.", {"field": "dest"})
    claims: dict[str, Any] = {"dest": {k: v for k, v in dest.items() if v}, "iat": iat}
    match passport.WhichOneof("orig"):
        case "orig_tn":
            claims["orig"] = {"tn": _tn("orig", passport.orig_tn)}
        case "orig_uri":
            claims["orig"] = {"uri": passport.orig_uri}
        case None:
            raise Refusal(INVALID, "ORIG_MISSING", "There is no orig.", {"field": "orig"})
    match kind:
        case "shaken":
            if passport.shaken.attest not in (1, 2, 3):
                raise Refusal(
                    INVALID, "ATTEST_UNKNOWN", "attest is A, B or C.", {"field": "attest"}
                )
            claims["attest"] = "-ABC"[passport.shaken.attest]
            claims["origid"] = _origid(passport.shaken.origid)
        case "div":
            claims["div"] = {"tn": _tn("div", passport.div.tn)}
        case "rph":
            claims["rph"] = {"auth": list(passport.rph.auth)}
        case "rcd":
            rcd = passport.rcd
            names = ("nam", "apn", "icn", "jcl")
            claims["rcd"] = {n: getattr(rcd, n) for n in names if getattr(rcd, n)}
            if not claims["rcd"]:
                raise Refusal(INVALID, "RCD_EMPTY", "There is nothing in rcd.", {"field": "rcd"})
    return claims, "" if kind == "base" else kind


def _tn(name: str, text: str) -> str:
    digits = re.sub(r"[-. ()]|^\+", "", text)
    if not re.fullmatch(r"[1-9][0-9]{1,14}", digits):
        raise Refusal(INVALID, "TN_INVALID", f"The {name} is no number.", {"field": name})
    return digits


def _origid(text: str) -> str:
    try:
        return str(UUID(text)) if text else str(uuid4())
    except ValueError:
        raise Refusal(INVALID, "ORIGID_INVALID", "No UUID.", {"field": "origid"}) from None


def segment(claims: dict[str, Any]) -> str:
    """A header or payload as it is signed."""
    return base64url(
        json.dumps(claims, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


def base64url(data: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
