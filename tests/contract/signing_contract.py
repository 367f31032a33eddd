"""What every Signing endpoint holds to, asserted over the wire with `kmsd_client`.

Run each of `ASSERTIONS` against an `Endpoint`; it says nothing of how that was started:

    @pytest.mark.parametrize("assertion", ASSERTIONS, ids=lambda a: a.__name__)
    async def test_contract(endpoint: Endpoint, assertion: Assertion) -> None:
        await assertion(endpoint)
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kmsapi.v1 import signing_pb2 as pb
from kmsapi.v1.signing_pb2_grpc import SigningStub
from kmsd_client import (
    ActiveCredential,
    AsyncClient,
    Base,
    Div,
    Passport,
    Rcd,
    Refused,
    Rph,
    Shaken,
    Signed,
    Synced,
)

from tests.contract.tokens import Token, read_identity, verify_signature

ORIG: Final = "12155550112"
DEST: Final = "12155550113"
GOOD: Final = Shaken(ORIG, DEST, "A")
BAD: Final = Shaken("not a number", DEST, "A")


@dataclass(frozen=True)
class Endpoint:
    """A signer that runs, and a caller that may sign everything for `profile`.

    client: its default profile is `profile`. channel: to the same signer as the same caller.
    public_key: the key of the certificate that an x5u of this endpoint leads to.
    frame_items, freshness: the signer's limits (items, seconds).
    """

    client: AsyncClient
    channel: grpc.aio.Channel
    profile: str
    public_key: Callable[[str], Awaitable[ec.EllipticCurvePublicKey]]
    frame_items: int = 256
    freshness: int = 60


Assertion: TypeAlias = Callable[[Endpoint], Awaitable[None]]


async def verified(endpoint: Endpoint, signed: Signed) -> Token:
    """Reads an Identity header value and checks form and signature."""
    token = read_identity(str(signed))
    verify_signature(token, await endpoint.public_key(token.x5u))
    return token


async def refused(call: Awaitable[object]) -> Refused:
    """The refusal that a call must end with: a reason of the signer's own, and a sentence."""
    with pytest.raises(Refused) as caught:
        await call
    return _well_formed(caught.value)


# --- what is signed


async def a_shaken_passport_verifies(endpoint: Endpoint) -> None:
    before = int(time.time())
    signed = await endpoint.client.sign_shaken(ORIG, DEST, "A")
    token = await verified(endpoint, signed)
    assert token.ppt == "shaken"
    assert set(token.claims) == {"attest", "dest", "iat", "orig", "origid"}
    assert token.claims["attest"] == "A"
    assert token.claims["orig"] == {"tn": ORIG}
    assert token.claims["dest"] == {"tn": [DEST]}
    assert before <= token.claims["iat"] <= time.time()


async def an_origid_is_made_and_told(endpoint: Endpoint) -> None:
    one = await endpoint.client.sign_shaken(ORIG, DEST, "B")
    two = await endpoint.client.sign_shaken(ORIG, DEST, "B")
    assert str(UUID(one.origid)) == one.origid
    assert one.origid != two.origid
    assert (await verified(endpoint, one)).claims["origid"] == one.origid


async def origid_and_fresh_iat_of_the_caller_are_kept(endpoint: Endpoint) -> None:
    origid, iat = "123e4567-e89b-42d3-a456-426655440000", int(time.time()) - 5
    signed = await endpoint.client.sign_shaken(ORIG, DEST, "C", origid=origid, iat=iat)
    token = await verified(endpoint, signed)
    assert signed.origid == token.claims["origid"] == origid
    assert token.claims["iat"] == iat
    assert token.claims["attest"] == "C"


async def numbers_are_signed_in_canonical_form(endpoint: Endpoint) -> None:
    signed = await endpoint.client.sign_shaken("+1 (215) 555-0112", ["+1.215.555.0113", DEST], "A")
    token = await verified(endpoint, signed)
    assert token.claims["orig"] == {"tn": ORIG}
    assert token.claims["dest"]["tn"][0] == DEST


async def a_base_passport_with_uris_verifies(endpoint: Endpoint) -> None:
    alice, bob = "sip:alice@example.com", "sip:bob@example.com"
    token = await verified(endpoint, await endpoint.client.sign_base(alice, [bob, DEST]))
    assert token.ppt == ""
    assert set(token.claims) == {"dest", "iat", "orig"}
    assert token.claims["orig"] == {"uri": alice}
    assert token.claims["dest"] == {"tn": [DEST], "uri": [bob]}


async def a_div_passport_keeps_the_old_iat(endpoint: Endpoint) -> None:
    iat = int(time.time()) - 7200
    token = await verified(endpoint, await endpoint.client.sign_div(ORIG, "12155550114", DEST, iat))
    assert token.ppt == "div"
    assert token.claims == {
        "dest": {"tn": ["12155550114"]},
        "div": {"tn": DEST},
        "iat": iat,
        "orig": {"tn": ORIG},
    }


async def an_rph_passport_verifies(endpoint: Endpoint) -> None:
    signed = await endpoint.client.sign_rph(ORIG, DEST, ["ets.0", "wps.0"])
    token = await verified(endpoint, signed)
    assert token.ppt == "rph"
    assert token.claims["rph"] == {"auth": ["ets.0", "wps.0"]}


async def an_rcd_passport_verifies(endpoint: Endpoint) -> None:
    icon = "https://www.example.com/icon.png"
    signed = await endpoint.client.sign_rcd(ORIG, DEST, nam="Zoë's Büro", icn=icon)
    token = await verified(endpoint, signed)
    assert token.ppt == "rcd"
    assert token.claims["rcd"] == {"icn": icon, "nam": "Zoë's Büro"}


# --- frames


async def a_frame_is_answered_in_order_under_one_epoch(endpoint: Endpoint) -> None:
    dests = [str(int(DEST) + n) for n in range(32)]
    outcomes = await endpoint.client.sign_many([Shaken(ORIG, dest, "A") for dest in dests])
    signed = [outcome for outcome in outcomes if isinstance(outcome, Signed)]
    tokens = [await verified(endpoint, each) for each in signed]
    assert [token.claims["dest"]["tn"] for token in tokens] == [[dest] for dest in dests]
    assert len({each.epoch for each in signed}) == 1
    assert len({each.origid for each in signed}) == len(dests)


async def a_frame_may_mix_types(endpoint: Endpoint) -> None:
    frame: list[Passport] = [
        GOOD,
        Base(ORIG, DEST),
        Div(ORIG, DEST, ORIG, 1),
        Rph(ORIG, DEST, ["ets.0"]),
        Rcd(ORIG, DEST, nam="x"),
    ]
    ppts = []
    for outcome in await endpoint.client.sign_many(frame):
        assert isinstance(outcome, Signed)
        ppts.append((await verified(endpoint, outcome)).ppt)
    assert ppts == ["shaken", "", "div", "rph", "rcd"]


async def one_bad_item_spoils_no_other(endpoint: Endpoint) -> None:
    first, bad, last = await endpoint.client.sign_many([GOOD, BAD, GOOD])
    assert isinstance(bad, Refused)
    _well_formed(bad)
    for signed in (first, last):
        assert isinstance(signed, Signed)
        await verified(endpoint, signed)


async def a_frame_of_bad_items_is_a_list_of_refusals(endpoint: Endpoint) -> None:
    outcomes = await endpoint.client.sign_many([BAD, BAD])
    for outcome in outcomes:
        assert isinstance(outcome, Refused)
        _well_formed(outcome)
    assert len(outcomes) == 2


async def the_largest_frame_is_signed_and_a_larger_one_refused(endpoint: Endpoint) -> None:
    outcomes = await endpoint.client.sign_many([GOOD] * endpoint.frame_items, timeout=10)
    assert all(isinstance(outcome, Signed) for outcome in outcomes)
    error = await refused(endpoint.client.sign_many([GOOD] * (endpoint.frame_items + 44)))
    assert str(endpoint.frame_items) in error.metadata.values(), "which limit"


async def an_empty_frame_is_refused(endpoint: Endpoint) -> None:
    request = pb.SignRequest(sequence=5, profile=endpoint.profile)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await SigningStub(endpoint.channel).Sign(request, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# --- refusals


async def an_unknown_profile_is_refused(endpoint: Endpoint) -> None:
    for name in ("nobody", "", "x" * 1000):
        await refused(endpoint.client.sign(GOOD, profile=name))


async def an_empty_dest_is_refused(endpoint: Endpoint) -> None:
    await refused(endpoint.client.sign_shaken(ORIG, [], "A"))


async def a_bad_attest_is_refused(endpoint: Endpoint) -> None:
    await refused(endpoint.client.sign_shaken(ORIG, DEST, "D"))  # type: ignore[arg-type]
    passport = pb.Passport(orig_tn=ORIG, dest_tn=[DEST])
    passport.shaken.MergeFromString(b"\x08\x63")  # attest: 99, as a newer caller might say
    request = pb.SignRequest(profile=endpoint.profile, passports=[passport])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await SigningStub(endpoint.channel).Sign(request, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def a_number_that_is_none_is_refused(endpoint: Endpoint) -> None:
    for text in ("", "+", "anonymous", "1" * 40, "0123456789", "١٢١٥٥٥٥٠١١٢", "1215\r\n5550112"):
        await refused(endpoint.client.sign_shaken(text, DEST, "A"))
        await refused(endpoint.client.sign_shaken(ORIG, [DEST, text], "A"))


async def an_iat_that_is_not_fresh_is_refused(endpoint: Endpoint) -> None:
    now = int(time.time())
    for iat in (now - endpoint.freshness - 60, now + endpoint.freshness + 60, -1):
        await refused(endpoint.client.sign_shaken(ORIG, DEST, "A", iat=iat))


async def an_origid_that_is_no_uuid_is_refused(endpoint: Endpoint) -> None:
    await refused(endpoint.client.sign_shaken(ORIG, DEST, "A", origid="call-1"))


async def rich_call_data_of_nothing_is_refused(endpoint: Endpoint) -> None:
    await refused(endpoint.client.sign_rcd(ORIG, DEST))


async def a_passport_without_orig_or_type_is_refused(endpoint: Endpoint) -> None:
    no_orig = pb.Passport(dest_tn=[DEST], base=pb.Base())
    no_type = pb.Passport(orig_tn=ORIG, dest_tn=[DEST])
    request = pb.SignRequest(profile=endpoint.profile, passports=[no_orig, no_type])
    response = await SigningStub(endpoint.channel).Sign(request, timeout=5)
    assert [result.WhichOneof("outcome") for result in response.results] == ["refusal"] * 2
    assert {result.refusal.code for result in response.results} == {3}, "INVALID_ARGUMENT"


# --- streams


async def the_sequence_is_given_back(endpoint: Endpoint) -> None:
    highest = 2**64 - 1
    request = pb.SignRequest(sequence=highest, profile=endpoint.profile, passports=[_GOOD])
    response = await SigningStub(endpoint.channel).Sign(request, timeout=5)
    assert response.sequence == highest


async def a_stream_goes_on_after_a_refused_frame(endpoint: Endpoint) -> None:
    frames = {
        7: pb.SignRequest(sequence=7, profile=endpoint.profile, passports=[_GOOD, _BAD]),
        8: pb.SignRequest(sequence=8, profile="nobody", passports=[_GOOD]),
        9: pb.SignRequest(
            sequence=9, profile=endpoint.profile, passports=[_GOOD] * (endpoint.frame_items + 1)
        ),
        10: pb.SignRequest(sequence=10, profile=endpoint.profile, passports=[_GOOD]),
    }
    answers: dict[int, pb.SignResponse] = {}
    call = SigningStub(endpoint.channel).SignStream(timeout=10)
    for frame in frames.values():
        await call.write(frame)
    await call.done_writing()
    async for answer in call:
        assert answer.sequence not in answers, "answered once"
        answers[answer.sequence] = answer
    assert set(answers) == set(frames)
    outcomes = [result.WhichOneof("outcome") for result in answers[7].results]
    assert outcomes == ["signed", "refusal"]
    for number in (8, 9):
        assert not answers[number].results
        assert answers[number].refusal.code in _REFUSALS
        assert re.fullmatch(_REASON, answers[number].refusal.reason)
    signed = answers[10].results[0].signed
    await verified(endpoint, Signed(signed.identity, signed.origid, answers[10].epoch))


# --- watching


async def a_watch_begins_with_a_snapshot_and_synced(endpoint: Endpoint) -> None:
    active = {}
    async with asyncio.timeout(5), aclosing(endpoint.client.watch()) as changes:
        async for change in changes:
            match change:
                case ActiveCredential():
                    active[change.profile] = change
                case Synced():
                    break
    signed = await endpoint.client.sign(GOOD)
    token = await verified(endpoint, signed)
    credential = active[endpoint.profile]
    assert credential.x5u == token.x5u
    assert re.fullmatch(r"[0-9a-f]{16}", credential.credential)
    assert credential.not_before <= time.time() < credential.not_after
    spki = (await endpoint.public_key(token.x5u)).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert credential.spki_sha256 == hashlib.sha256(spki).hexdigest()


async def a_watch_of_one_profile_tells_of_no_other(endpoint: Endpoint) -> None:
    async with asyncio.timeout(5), aclosing(endpoint.client.watch([endpoint.profile])) as changes:
        first, second = await anext(changes), await anext(changes)
    assert isinstance(first, ActiveCredential)
    assert first.profile == endpoint.profile
    assert isinstance(second, Synced)


async def a_watch_of_an_unknown_profile_is_refused(endpoint: Endpoint) -> None:
    await refused(anext(endpoint.client.watch(["nobody"])))


async def the_health_service_says_serving(endpoint: Endpoint) -> None:
    assert await endpoint.client.healthy()


ASSERTIONS: Final[tuple[Assertion, ...]] = (
    a_shaken_passport_verifies,
    an_origid_is_made_and_told,
    origid_and_fresh_iat_of_the_caller_are_kept,
    numbers_are_signed_in_canonical_form,
    a_base_passport_with_uris_verifies,
    a_div_passport_keeps_the_old_iat,
    an_rph_passport_verifies,
    an_rcd_passport_verifies,
    a_frame_is_answered_in_order_under_one_epoch,
    a_frame_may_mix_types,
    one_bad_item_spoils_no_other,
    a_frame_of_bad_items_is_a_list_of_refusals,
    the_largest_frame_is_signed_and_a_larger_one_refused,
    an_empty_frame_is_refused,
    an_unknown_profile_is_refused,
    an_empty_dest_is_refused,
    a_bad_attest_is_refused,
    a_number_that_is_none_is_refused,
    an_iat_that_is_not_fresh_is_refused,
    an_origid_that_is_no_uuid_is_refused,
    rich_call_data_of_nothing_is_refused,
    a_passport_without_orig_or_type_is_refused,
    the_sequence_is_given_back,
    a_stream_goes_on_after_a_refused_frame,
    a_watch_begins_with_a_snapshot_and_synced,
    a_watch_of_one_profile_tells_of_no_other,
    a_watch_of_an_unknown_profile_is_refused,
    the_health_service_says_serving,
)

_GOOD: Final = pb.Passport(orig_tn=ORIG, dest_tn=[DEST], shaken=pb.Shaken(attest=pb.ATTESTATION_A))
_BAD: Final = pb.Passport(orig_tn=ORIG, shaken=pb.Shaken(attest=pb.ATTESTATION_A))
_REASON: Final = r"[A-Z][A-Z0-9_]{1,62}"
_REFUSALS: Final = (3, 5, 7, 9)  # INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, FAILED_PRE...


def _well_formed(error: Refused) -> Refused:
    assert re.fullmatch(_REASON, error.reason)
    # The client falls back to the status name when there is no ErrorInfo of domain "kmsd".
    assert error.reason not in grpc.StatusCode.__members__, "no ErrorInfo of domain kmsd"
    assert re.search(r"\w \w.*[.!?`]", error.message), "a sentence for people"
    return error
