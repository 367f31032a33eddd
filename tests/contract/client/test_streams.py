"""What happens to calls when streams break, signers fall silent, and clients end."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from kmsapi.v1 import signing_pb2 as pb
from kmsd_client import (
    AsyncClient,
    DeadlineExceeded,
    Denied,
    Overloaded,
    Refused,
    Signed,
    SigningError,
    Tls,
    Unavailable,
)
from kmsd_client.calls import Call, Frame

from tests.contract.client.calls import AWAY, FULL, GOOD, NO_GRANT, until
from tests.contract.software_claims import Refusal
from tests.contract.software_signer import SoftwareSigner, served, signer_for
from tests.contract.tls_parts import Parts

BROKEN = Refusal(grpc.StatusCode.UNAVAILABLE, "", "The proxy has gone.")


@pytest.fixture
async def pair(parts: Parts) -> AsyncIterator[list[tuple[SoftwareSigner, str, grpc.aio.Server]]]:
    """Two signers that sign alike."""
    async with AsyncExitStack() as stack:
        started = []
        for signer in (signer_for(["acme"]), signer_for(["acme"])):
            target, server = await stack.enter_async_context(served(signer, parts))
            started.append((signer, target, server))
        yield started


async def gathered(client: AsyncClient, calls: int) -> list[Signed | BaseException]:
    """What becomes of so many calls of the same time."""
    return await asyncio.gather(*(client.sign(GOOD) for _ in range(calls)), return_exceptions=True)


async def test_a_late_call_is_told_at_its_time_and_the_others_are_signed(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10, connections=1) as client:
        await client.sign(GOOD)
        signer.faults.delay = 0.4
        before = loop.time()
        late = asyncio.create_task(client.sign(GOOD, timeout=0.1))
        patient = asyncio.create_task(client.sign(GOOD))
        with pytest.raises(DeadlineExceeded, match=r"within 0\.1 s"):
            await late
        assert 0.1 <= loop.time() - before + 0.001 < 0.4
        assert isinstance(await patient, Signed)


async def test_a_call_that_is_late_before_its_frame_leaves_is_never_sent(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10, connections=1) as client:
        await client.sign(GOOD)
        signer.faults.delay = 0.3
        ahead = []
        for _ in range(2):  # as many frames as one stream takes of one profile
            ahead.append(asyncio.create_task(client.sign(GOOD)))
            await asyncio.sleep(0.01)
        with pytest.raises(DeadlineExceeded):
            await client.sign(GOOD, timeout=0.05)
        await asyncio.gather(*ahead)
        await client.sign(GOOD)
    assert signer.frames == [1, 1, 1, 1]


async def test_a_cancelled_call_that_waits_is_never_sent_and_spoils_no_other(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10, connections=1) as client:
        await client.sign(GOOD)
        signer.faults.delay = 0.2
        calls = []
        for _ in range(4):
            calls.append(asyncio.create_task(client.sign(GOOD)))
            await asyncio.sleep(0.01)
        calls[0].cancel()  # under way
        calls[2].cancel()  # waits
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [asyncio.CancelledError, Signed, asyncio.CancelledError, Signed]
    assert signer.frames == [1, 1, 1, 1]


@pytest.mark.parametrize("fault", [AWAY, BROKEN], ids=["signer says so", "connection breaks"])
async def test_what_was_under_way_on_a_stream_that_breaks_is_signed_elsewhere(
    client: AsyncClient, signer: SoftwareSigner, fault: Refusal
) -> None:
    signer.faults.next_streams = [fault]
    outcomes = await gathered(client, 20)
    assert all(isinstance(outcome, Signed) for outcome in outcomes)
    assert signer.frames == [20, 20]


async def test_a_frame_that_is_refused_as_unavailable_is_signed_elsewhere(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [AWAY]
    outcomes = await gathered(client, 20)
    assert all(isinstance(outcome, Signed) for outcome in outcomes)
    assert signer.frames == [20, 20]


async def test_one_item_that_is_unavailable_is_signed_elsewhere_and_the_others_once(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    away = pb.Refusal(code=14, reason="HSM_AWAY", message="The HSM is away.")
    signed = pb.SignResult(signed=pb.Signed(identity="first"))
    answer = pb.SignResponse(sequence=1, results=[signed, pb.SignResult(refusal=away)])
    signer.faults.next_calls = [answer]
    first, second = await gathered(client, 2)
    assert str(first) == "first"
    assert isinstance(second, Signed)
    assert signer.frames == [2, 1]


async def test_a_signer_that_dies_under_load_costs_no_call(
    pair: list[tuple[SoftwareSigner, str, grpc.aio.Server]], tls: Tls
) -> None:
    (dying, first, server), (staying, second, _) = pair
    dying.faults.delay = staying.faults.delay = 0.005
    async with AsyncClient([first, second], tls=tls, profile="acme", timeout=10) as client:

        async def calling() -> None:
            while not over.is_set():
                signed.append(await client.sign(GOOD))

        over, signed = asyncio.Event(), list[Signed]()
        callers = [asyncio.create_task(calling()) for _ in range(50)]
        await until(lambda: dying.calls > 5 and staying.calls > 5)
        await server.stop(None)
        before = len(signed)
        await until(lambda: len(signed) > before + 500)
        over.set()
        await asyncio.gather(*callers)


async def test_a_signer_that_is_away_is_left_alone_while_another_one_signs(
    pair: list[tuple[SoftwareSigner, str, grpc.aio.Server]], tls: Tls
) -> None:
    (away, first, _), (_, second, _) = pair
    away.faults.next_calls = [AWAY] * 1000
    targets = [first, second]
    async with AsyncClient(targets, tls=tls, profile="acme", timeout=10, connections=1) as client:
        for _ in range(100):
            assert isinstance(await client.sign(GOOD), Signed)
        assert away.calls <= 5
        away.faults.next_calls = []
        async with asyncio.timeout(10):
            tried = away.calls
            while away.calls == tried:
                await client.sign(GOOD)


async def test_a_call_whose_signers_are_all_away_says_why(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [AWAY] * 100
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await client.sign(GOOD)
        assert caught.value.reason == "HSM_AWAY"
    assert signer.calls <= 12, "each connection at most once for a call"
    signer.faults.next_calls = []
    assert isinstance(await client.sign(GOOD), Signed), "better a bad name than none"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(NO_GRANT, Denied), (FULL, Overloaded)],
    ids=["a refusal", "overload"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["ends the stream", "answers the frame"])
async def test_an_answer_is_an_answer_and_is_not_asked_for_again(
    client: AsyncClient,
    signer: SoftwareSigner,
    fault: Refusal,
    kind: type[SigningError],
    stream: bool,
) -> None:
    (signer.faults.next_streams if stream else signer.faults.next_calls).append(fault)
    for error in await gathered(client, 3):
        assert isinstance(error, kind)
        assert error.reason == fault.reason
        assert error.retry_after == (2.5 if kind is Overloaded else 0)
    assert signer.frames == [3]
    assert isinstance(await client.sign(GOOD), Signed)


async def test_a_signer_without_streams_is_refused_to_talk_to(parts: Parts, tls: Tls) -> None:
    signer = signer_for(["acme"])
    signer.faults.next_streams = [Refusal(grpc.StatusCode.UNIMPLEMENTED, "", "Unknown method.")]
    async with (
        served(signer, parts) as (target, _),
        AsyncClient(target, tls=tls, profile="acme", timeout=10) as client,
    ):
        with pytest.raises(Refused) as caught:
            await client.sign(GOOD)
    assert caught.value.reason == "UNIMPLEMENTED"


async def test_a_signer_that_never_answers_is_given_up_and_asked_anew(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    signer.faults.delay = 1000
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10, connections=1) as client:
        for _ in range(3):  # more than a stream takes
            with pytest.raises(DeadlineExceeded):
                await client.sign(GOOD, timeout=0.1)
        await until(lambda: signer.cancelled >= 1)
        signer.faults.delay = 0
        async with asyncio.timeout(5):
            while isinstance(outcome := (await gathered(client, 1))[0], Unavailable):
                assert outcome.reason == "SIGNER_SILENT"
                await asyncio.sleep(0.02)
        assert isinstance(outcome, Signed)


async def test_close_waits_for_calls_that_still_gather(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    client = AsyncClient(target, tls=tls, profile="acme", timeout=10, connections=1)
    await client.sign(GOOD)
    signer.faults.delay = 0.1
    calls = []
    for _ in range(6):
        calls.append(asyncio.create_task(client.sign(GOOD)))
        await asyncio.sleep(0.01)
    await client.close()
    assert all(isinstance(call.result(), Signed) for call in calls), "done before close is"


async def test_close_without_patience_tells_everybody(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    client = AsyncClient(target, tls=tls, profile="acme", timeout=10, connections=1)
    await client.sign(GOOD)
    signer.faults.delay = 100
    calls = []
    for _ in range(5):
        calls.append(asyncio.create_task(client.sign(GOOD)))
        await asyncio.sleep(0.01)
    await client.close(grace=0.05)
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, Unavailable)
        assert error.reason == "CLOSED"


async def test_nothing_is_left_of_ten_thousand_calls_that_went_every_way(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    tasks_before = asyncio.all_tasks()
    client = AsyncClient(target, tls=tls, profile="acme", timeout=10, queue_items=600)
    bad = pb.SignResponse(sequence=2**63)
    faults: list[Refusal | pb.SignResponse] = [AWAY, FULL, bad]
    for number in range(20):
        signer.faults.delay = 0.02 if number % 4 == 0 else 0
        signer.faults.next_streams = [BROKEN, NO_GRANT][: number % 3]
        signer.faults.next_calls = faults[: number % 4]
        calls = [
            asyncio.ensure_future(client.sign(GOOD, timeout=0.01 if each % 7 == 0 else 5))
            for each in range(500)
        ]
        await asyncio.sleep(0.005)
        for call in calls[::5]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    dispatch = client._open()._dispatch
    assert len(dispatch._waiting) == 0
    assert not dispatch._waiting.profiles(1)
    signer.faults.delay = 0
    await until(lambda: not dispatch._under_way())
    assert all(stream.connection.outstanding == 0 for stream in dispatch._streams)
    assert len(asyncio.all_tasks() - tasks_before) < 40, "the client's and the signer's streams"
    await client.close()
    await until(lambda: not any("kmsd" in task.get_name() for task in asyncio.all_tasks()))
    del calls, call
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Call | Frame)]


async def test_a_closed_client_is_disconnected_also_before_its_garbage_is_collected(
    target: str, tls: Tls
) -> None:
    async def used() -> None:
        async with AsyncClient(target, tls=tls, profile="acme", timeout=10) as client:
            await client.sign(GOOD)

    def connected() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await used()
    gc.collect()
    before = connected()
    gc.disable()
    try:
        for _ in range(5):
            await used()
        await until(lambda: connected() <= before)
    finally:
        gc.enable()
