"""Clients that are broken, hostile or gone: nothing of them is left, and no other client notices.

A real signer, without TLS so that raw HTTP/2 reaches it. Around every fault another client is
signed for, and what the signer holds (descriptors, threads, tasks, objects, memory) is the same
after it as before.
"""

import asyncio
import gc
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from kmsapi.v1 import signing_pb2 as pb
from kmsapi.v1.signing_pb2_grpc import SigningStub
from kmsd_client import AsyncClient, Overloaded, Signed

from tests.contract.signing_contract import DEST, GOOD, ORIG
from tests.system import http2
from tests.system.programs import program, until
from tests.system.signing_host import SigningHost
from tests.system.tallied import Tally, status_kib, tally

SIGN = "/kmsapi.v1.Signing/Sign"
STREAM = "/kmsapi.v1.Signing/SignStream"
LARGEST = 1 << 20
"""Bytes of one message."""
FRAME = 256
"""Items of one frame, at most."""
HELD = 6
"""Frames of one stream that a signer has in its hands, at most: 4 that wait, 2 on their way."""
IDLE = 1000
ROUNDS = 200
MIB = 1024
"""KiB."""
MORE_THREADS = 8
"""gRPC makes a few threads as it needs them, and ends them when it likes."""
JUNK = {
    "no field": b"\xff\xff\xff",
    "a wire type there is not": b"\x1f",
    "a length beyond the end": b"\x1a\x05abc",
    "text that is none": b"\x12\x02\xff\xfe",
}
Stream: TypeAlias = "grpc.aio.StreamStreamCall[pb.SignRequest, pb.SignResponse]"
PASSPORT = pb.Passport(orig_tn=ORIG, dest_tn=[DEST], shaken=pb.Shaken(attest=pb.ATTESTATION_A))


@dataclass(frozen=True)
class Signer:
    """One that runs."""

    pid: int
    port: int
    file: Path

    def holds(self) -> Tally:
        return tally(self.pid, self.file)

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own, whose answers stay away until they are read."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options)

    def client(self) -> AsyncClient:
        return AsyncClient(
            f"127.0.0.1:{self.port}", tls=None, profile="acme", timeout=30, connections=1
        )


@contextmanager
def running(folder: Path) -> Iterator[Signer]:
    """A signer that serves the profile acme."""
    host = SigningHost(folder, plaintext=True)
    host.activate(host.entry(host.key()))
    file = folder / "tally"
    words = ("tests.system.tallied", str(file), "--config", str(host.config), "signer")
    with program(folder / "signer-1.log", *words) as child:
        host.until_serving()
        yield Signer(child.pid, host.port, file)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = max(soft, 4 * IDLE) if hard == resource.RLIM_INFINITY else min(hard, 4 * IDLE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    try:
        with running(tmp_path_factory.mktemp("host")) as signer:
            yield signer
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def other(signer: Signer) -> AsyncIterator[AsyncClient]:
    """A client that is signed for all the time, and never notices."""
    async with signer.client() as client:
        signed = 0

        async def sign() -> None:
            nonlocal signed
            while not over.is_set():
                with suppress(Overloaded):  # said in time, and no fault
                    await client.sign(GOOD)
                    signed += 1
                await asyncio.sleep(0.02)

        over = asyncio.Event()
        await client.sign(GOOD)
        calling = asyncio.create_task(sign())
        yield client
        over.set()
        await calling
        assert signed


@pytest.fixture
async def nothing_left(signer: Signer, other: AsyncClient) -> AsyncIterator[None]:
    """What the signer holds after the test is what it held before."""
    async with unchanged(signer):
        yield


@asynccontextmanager
async def unchanged(signer: Signer, memory: int = 32 * MIB) -> AsyncIterator[None]:
    """The same for a block, whose calls are garbage at its end. memory: KiB it may keep."""
    gc.collect()
    before = await asyncio.to_thread(signer.holds)
    yield
    gc.collect()  # gRPC disconnects when the last call on a connection is garbage
    after = before

    def gone() -> bool:
        nonlocal after
        after = signer.holds()
        return (
            after.descriptors <= before.descriptors
            and after.tasks <= before.tasks + 1  # the other client's stream, when it is at work
            and after.objects <= before.objects + 10
            and after.threads <= before.threads + MORE_THREADS
            and after.memory <= before.memory + memory
        )

    try:
        await asyncio.to_thread(until, "the signer lets go", gone, 20.0)
    except AssertionError as late:
        raise AssertionError(f"{before} became {after}") from late


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
async def test_what_is_no_request_is_refused_and_ends_no_other_stream(
    signer: Signer, nothing_left: None, junk: bytes
) -> None:
    async with signer.channel() as channel:
        stream = SigningStub(channel).SignStream()
        await stream.write(frame(1))
        assert_signed(await answer(stream))
        for refused in (unary(channel)(junk), sent(channel, junk)):
            error = await error_of(refused)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "defect" not in str(error.details())
        await stream.write(frame(2))
        assert_signed(await answer(stream))


@pytest.mark.parametrize(
    "content",
    [b"\x12\x80\x80\x40" + bytes(LARGEST), bytes(LARGEST + 1)],
    ids=["a long name", "zeros"],
)
async def test_a_message_that_is_too_large_is_refused_unread(
    signer: Signer, nothing_left: None, content: bytes
) -> None:
    async with signer.channel() as channel:
        stream = SigningStub(channel).SignStream()
        for refused in (unary(channel)(content), sent(channel, content)):
            assert (await error_of(refused)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stream.write(frame(1))
        assert_signed(await answer(stream))


async def test_a_small_message_that_unpacks_to_a_large_one_is_refused(
    signer: Signer, nothing_left: None
) -> None:
    peak = status_kib(signer.pid, "VmHWM")
    bomb = pb.SignRequest(profile="x" * (64 * LARGEST)).SerializeToString()
    async with signer.channel() as channel:
        call = unary(channel)(bomb, compression=grpc.Compression.Gzip)
        assert (await error_of(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_kib(signer.pid, "VmHWM") < peak + 32 * MIB


async def test_a_length_that_is_claimed_costs_no_memory(signer: Signer, nothing_left: None) -> None:
    peak = status_kib(signer.pid, "VmHWM")
    with ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(http2.connected(signer.port))
            http2.greet(connection)
            connection.sendall(http2.call("SignStream", 1))
            connection.sendall(http2.message(1, b"\x12", claimed=LARGEST - 1))
            http2.greeted(connection)
        await asyncio.to_thread(signer.holds)
    assert status_kib(signer.pid, "VmHWM") < peak + 10 * MIB


async def test_metadata_that_is_too_large_is_refused(signer: Signer, nothing_left: None) -> None:
    async with signer.channel() as channel:
        for bomb in ([("x", "y" * 20_000)], [(f"x-{number}", "y" * 50) for number in range(500)]):
            call = SigningStub(channel).Sign(frame(1), metadata=bomb)
            assert (await error_of(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert_signed(await SigningStub(channel).Sign(frame(2)))


async def test_a_client_that_never_reads_is_read_no_further(
    signer: Signer, other: AsyncClient, nothing_left: None
) -> None:
    """Its frames wait in its own memory, and every one is answered when it reads at last."""
    async with signer.channel() as channel:
        before = signer.holds()
        streams = [SigningStub(channel).SignStream() for _ in range(8)]
        written = await asyncio.gather(*(write_until_blocked(stream) for stream in streams))
        during = signer.holds()
        assert during.objects <= before.objects + len(streams) * HELD * (FRAME + 10)
        assert during.memory <= before.memory + 32 * MIB
        assert isinstance(await other.sign(GOOD), Signed)
        for stream, frames in zip(streams, written, strict=True):
            answers = [await answer(stream) for _ in range(frames)]
            assert sorted(one.sequence for one in answers) == list(range(frames))
            stream.cancel()


async def test_a_client_that_never_read_and_goes_leaves_nothing(
    signer: Signer, nothing_left: None
) -> None:
    for _ in range(5):
        async with signer.channel() as channel:
            streams = [SigningStub(channel).SignStream() for _ in range(8)]
            await asyncio.gather(*(write_frames(stream, 8) for stream in streams))


@pytest.mark.parametrize("speaks", [True, False], ids=["in HTTP/2", "without a word"])
async def test_a_thousand_idle_connections_are_nobody_elses_concern(
    signer: Signer, nothing_left: None, speaks: bool
) -> None:
    before = signer.holds()
    with ExitStack() as stack:
        idle = [stack.enter_context(http2.connected(signer.port)) for _ in range(IDLE)]
        if speaks:
            for connection in idle:
                http2.greet(connection)
            for connection in idle:
                await asyncio.to_thread(http2.greeted, connection)
        await eventually(lambda: signer.holds().descriptors >= before.descriptors + IDLE)
        async with signer.client() as late:
            assert isinstance(await late.sign(GOOD), Signed)
        during = signer.holds()
        assert during.tasks <= before.tasks + 8, "those of the late client"
        assert during.memory <= before.memory + 100 * MIB


async def test_streams_that_are_cut_in_the_middle_of_a_frame_leave_nothing(
    signer: Signer, other: AsyncClient
) -> None:
    whole = http2.message(1, frame(1).SerializeToString())
    cuts = {
        "in its head": whole[:4],
        "after its head": whole[:14],
        "in its message": whole[: len(whole) // 2],
        "after one that is whole": whole + whole[: len(whole) // 2],
        "before the answer": whole,
    }
    for end in (http2.cut, socket.socket.close):
        await cut_streams(signer, list(cuts.values()), end, len(cuts))  # the first of their kind
        async with unchanged(signer, 8 * MIB):
            await cut_streams(signer, list(cuts.values()), end, ROUNDS)


async def test_streams_that_are_cancelled_under_way_leave_nothing(
    signer: Signer, other: AsyncClient
) -> None:
    async def rounds(number: int) -> None:
        async with signer.channel() as channel:
            for turn in range(number):
                stream = SigningStub(channel).SignStream()
                await write_frames(stream, 1 + turn % 8)
                if turn % 3 == 0:
                    await answer(stream)
                stream.cancel()

    await rounds(20)
    async with unchanged(signer, 8 * MIB):
        await rounds(ROUNDS)


async def test_a_stream_that_stands_costs_no_more_with_every_frame(
    signer: Signer, other: AsyncClient
) -> None:
    """Good frames, frames with bad items, frames that are refused: all of them are forgotten."""

    async def rounds(number: int) -> None:
        async with signer.channel() as channel:
            stream = SigningStub(channel).SignStream()
            for _ in range(number):
                for request in (
                    frame(1),
                    frame(2, PASSPORT, pb.Passport()),
                    frame(3, items=FRAME + 1),
                ):
                    await stream.write(request)
                    assert (await answer(stream)).sequence == request.sequence
            stream.cancel()

    await rounds(20)
    async with unchanged(signer, 8 * MIB):
        await rounds(ROUNDS)


async def test_a_signer_keeps_descriptors_for_itself(tmp_path: Path) -> None:
    """However many connect: who is connected is signed for, and later others are, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    with ExitStack() as stack:
        try:
            signer = stack.enter_context(running(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with signer.client() as client, signer.client() as late:
            await client.sign(GOOD)
            with ExitStack() as idle:
                for _ in range(300):
                    idle.enter_context(http2.connected(signer.port))
                await eventually(lambda: signer.holds().descriptors >= 128)
                for _ in range(20):
                    assert isinstance(await client.sign(GOOD), Signed)
                assert signer.holds().descriptors < 200
            assert isinstance(await late.sign(GOOD), Signed)


def frame(sequence: int, *passports: pb.Passport, items: int = 16) -> pb.SignRequest:
    """passports: its items, by default so many good ones."""
    return pb.SignRequest(
        sequence=sequence, profile="acme", passports=passports or [PASSPORT] * items
    )


def unary(channel: grpc.aio.Channel) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    """Sign, of bytes that need not be a request."""
    return channel.unary_unary(SIGN)


async def sent(channel: grpc.aio.Channel, content: bytes) -> object:
    """The first answer of a stream to this."""
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
    stream = method()
    await stream.write(content)
    return await stream.read()


async def answer(stream: Stream) -> pb.SignResponse:
    """The next one."""
    message = await asyncio.wait_for(stream.read(), 30)
    assert isinstance(message, pb.SignResponse)
    return message


def assert_signed(response: pb.SignResponse) -> None:
    assert all(result.signed.identity for result in response.results)
    assert response.results


async def error_of(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 30)
    return caught.value


async def write_frames(stream: Stream, number: int) -> None:
    for sequence in range(number):
        await stream.write(frame(sequence))


async def write_until_blocked(stream: Stream) -> int:
    """Writes frames and reads no answer, until nothing moves; gives how many there are."""
    for sequence in range(4000):
        writing = asyncio.ensure_future(stream.write(frame(sequence, items=FRAME)))
        _, unwritten = await asyncio.wait([writing], timeout=1.0)
        if unwritten:
            return sequence + 1  # the last leaves when there is room again
    raise AssertionError("the signer reads on for ever")


async def cut_streams(
    signer: Signer, parts: list[bytes], end: Callable[[socket.socket], None], rounds: int
) -> None:
    for turn in range(rounds):
        with http2.connected(signer.port) as connection:
            http2.greet(connection)
            connection.sendall(http2.call("SignStream", 1) + parts[turn % len(parts)])
            await asyncio.to_thread(http2.greeted, connection)
            end(connection)


async def eventually(holds: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, "it comes to that", holds)
