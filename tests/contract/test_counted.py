"""What a signer counts of what its callers get: over gRPC, on a token that can be unplugged."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import cast

import grpc
import pytest
from kmsapi.v1 import signing_pb2_grpc
from kmsapi.v1.signing_pb2 import ATTESTATION_A, Passport, Shaken, SignRequest, SignResponse

from kmsd import settings
from kmsd.access import PLAINTEXT, Grants
from kmsd.counters import Totals
from kmsd.hsm import Hsm, new_key_id
from kmsd.lanes import Lanes
from kmsd.listen import Listener
from kmsd.live import Live
from kmsd.ring import Delta, Entry
from kmsd.signing import SERVICE, Signing
from tests.contract.hsm_bench import NOW, FakeOnBench

GOOD = Passport(orig_tn="12015550101", dest_tn=["12025550102"], shaken=Shaken(attest=ATTESTATION_A))
WRONG = Passport(orig_tn="none", dest_tn=["12025550102"], shaken=Shaken(attest=ATTESTATION_A))


class Host:
    """A signer of profile `acme` in this process, and a stub to call it with."""

    def __init__(self) -> None:
        self.token = FakeOnBench()
        grants = Grants(
            [settings.Caller(id=PLAINTEXT, profiles=("*",), types=("shaken",), attest="A")]
        )
        self.signing = Signing(grants, settings.Signer(), ["acme"])

    @asynccontextmanager
    async def serving(self) -> "AsyncIterator[signing_pb2_grpc.SigningAsyncStub]":
        hsm = cast(Hsm, self.token.open())
        birth = hsm.generate(new_key_id(), "test", NOW)
        lanes = Lanes(hsm, 1, longest_wait=60, on_loss=lambda _: None)
        live = Live(lanes)
        entry = Entry(
            profile="acme",
            spc="1234",
            credential="0" * 16,
            key_id=birth.key_id,
            spki_sha256=sha256(birth.public_key).hexdigest(),
            x5u="https://cr.example.org/1.pem",
            not_before=0,
            not_after=2**40,
        )
        await live.follow([Delta(1, (entry,))])
        self.signing.opened(live, lanes)
        listener = Listener([SERVICE], share_port=False)
        signing_pb2_grpc.add_SigningServicer_to_server(self.signing, listener.server)
        port = listener.bind("127.0.0.1:0", None)
        await listener.server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield signing_pb2_grpc.SigningStub(channel)
        finally:
            await listener.server.stop(0)
            lanes.close()

    def totals(self) -> Totals:
        return self.signing.counters.totals()


def frame(*passports: Passport, profile: str = "acme", sequence: int = 0) -> SignRequest:
    return SignRequest(profile=profile, sequence=sequence, passports=passports)


async def test_calls_and_frames_are_counted_apart_and_streams_while_they_are_open() -> None:
    host = Host()
    async with host.serving() as stub:
        await stub.Sign(frame(GOOD))
        stream = stub.SignStream()
        for sequence in (1, 2):
            await stream.write(frame(GOOD, WRONG, sequence=sequence))
            await stream.read()
        assert host.totals().streams == 1
        await stream.done_writing()
        assert await stream.read() == grpc.aio.EOF
        after = host.totals()
    assert (after.calls, after.frames, after.streams) == (1, 2, 0)
    assert after.signed["shaken", "A"] == after.by_profile["acme"] == 3
    assert after.refused == {"TN_INVALID": 2}
    assert after.took[-1] == 3


async def test_a_caller_that_goes_leaves_no_open_stream_behind() -> None:
    host = Host()
    async with host.serving() as stub:
        stream = stub.SignStream()
        await stream.write(frame(GOOD, sequence=1))
        await stream.read()
        stream.cancel()
    assert host.totals().streams == 0


async def test_what_is_refused_whole_counts_each_of_its_passports_once() -> None:
    host = Host()
    async with host.serving() as stub:
        for refused in (frame(GOOD, GOOD, profile="other"), frame(), frame(WRONG)):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Sign(refused)
        stream = stub.SignStream()
        await stream.write(frame(GOOD, GOOD, GOOD, profile="other", sequence=1))
        answer = await stream.read()
        assert isinstance(answer, SignResponse)
        assert answer.refusal.reason == "PROFILE_NOT_ACTIVE"
        await stream.done_writing()
    totals = host.totals()
    assert totals.refused == {"PROFILE_NOT_ACTIVE": 2 + 3, "FRAME_EMPTY": 1, "TN_INVALID": 1}
    assert totals.took[-1] == 0  # quick refusals would make the slow answers look rare
    assert not any(totals.signed.values())


async def test_what_a_lost_hsm_did_not_sign_is_refused_and_not_signed() -> None:
    host = Host()
    async with host.serving() as stub:
        await stub.Sign(frame(GOOD))
        host.token.unplug()
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Sign(frame(GOOD, GOOD))
    totals = host.totals()
    assert totals.refused == {"HSM_LOST": 2}
    assert totals.signed["shaken", "A"] == totals.took[-1] == 1
