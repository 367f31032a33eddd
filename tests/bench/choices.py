"""What the hot path's choices cost, each beside what else could have been chosen.

In one process with nothing else to do: microseconds of CPU a PASSporT, the best of many short
loops. Everything that is compared gives the same octets, or the same facts.
"""

import json
import time
from collections.abc import Callable

import msgspec
from google.protobuf import json_format
from kmsapi.v1 import signing_pb2 as pb

from kmsd import passport
from tests.bench.echo import IDENTITY, ORIGID
from tests.bench.load import ORIG, dest

ITEMS = 64
NOW = 1_790_000_000


class _Payload(msgspec.Struct):
    """The claims of a SHAKEN PASSporT, in their canonical order."""

    attest: str
    dest: dict[str, list[str]]
    iat: int
    orig: dict[str, str]
    origid: str


def choices() -> dict[str, float]:
    """Microseconds, by what was measured."""
    claims = passport.Claims(passport.Tn(ORIG), (dest(0),), (), NOW, passport.Shaken("A", ORIGID))
    said = {
        "attest": "A",
        "dest": {"tn": [dest(0)]},
        "iat": NOW,
        "orig": {"tn": ORIG},
        "origid": ORIGID,
    }

    def ours() -> bytes:
        return passport.payload(claims, now=NOW, freshness=60, new_origid=lambda: ORIGID).json

    def with_msgspec() -> bytes:
        return msgspec.json.encode(_Payload("A", {"tn": [dest(0)]}, NOW, {"tn": ORIG}, ORIGID))

    def with_json() -> bytes:
        return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()

    if not ours() == with_msgspec() == with_json():
        raise AssertionError("these are not the same payload")
    request, response = _frame(), _answer()
    wire, text = request.SerializeToString(), json_format.MessageToJson(request)
    return {
        "payload, checked and written as text": _microseconds(ours),
        "payload, written by msgspec, unchecked": _microseconds(with_msgspec),
        "payload, written by json, unchecked": _microseconds(with_json),
        "request decoded, protobuf": _microseconds(lambda: pb.SignRequest.FromString(wire), ITEMS),
        "request decoded, JSON by msgspec": _microseconds(lambda: msgspec.json.decode(text), ITEMS),
        "response encoded, protobuf": _microseconds(response.SerializeToString, ITEMS),
        "response filled field by field": _microseconds(_answer, ITEMS),
        "response filled from messages": _microseconds(_answer_of_messages, ITEMS),
    }


def _frame() -> pb.SignRequest:
    request = pb.SignRequest(profile="acme")
    for item in range(ITEMS):
        request.passports.add(
            orig_tn=ORIG, dest_tn=[dest(item)], shaken=pb.Shaken(attest=pb.ATTESTATION_A)
        )
    return request


def _answer() -> pb.SignResponse:
    response = pb.SignResponse(epoch=1)
    add = response.results.add
    for _ in range(ITEMS):
        signed = add().signed
        signed.identity = IDENTITY
        signed.origid = ORIGID
    return response


def _answer_of_messages() -> pb.SignResponse:
    response = pb.SignResponse(epoch=1)
    add = response.results.add
    for _ in range(ITEMS):
        add(signed=pb.Signed(identity=IDENTITY, origid=ORIGID))
    return response


def _microseconds(what: Callable[[], object], items: int = 1) -> float:
    times = max(1, 2000 // items)
    best = float("inf")
    for _ in range(20):
        begun = time.process_time()
        for _ in range(times):
            what()
        best = min(best, time.process_time() - begun)
    return best / times / items * 1e6
