"""Load of the gRPC API itself, with as little client as there can be: requests are encoded
beforehand but for sequence and profile, and answers are decoded and looked through.
"""

import asyncio
import itertools
from collections import deque
from pathlib import Path
from typing import Any, Final

import grpc
from kmsapi.v1 import signing_pb2 as pb

from tests.bench.figures import Order, Setup
from tests.bench.load import ORIG, PAUSE, Count, clock, closed_loop, dest, open_loop

OVERLOADED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED
OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # connections of their own, not one shared
    ("grpc.enable_http_proxy", 0),
)


class Requests:
    """Encoded requests. A message and its parts one after the other are the same in protobuf."""

    def __init__(self, profiles: tuple[str, ...]) -> None:
        self._profiles = itertools.cycle(profiles)
        self._sequence = itertools.count(1)
        self._frames: dict[int, itertools.cycle[bytes]] = {}

    def next(self, frame: int) -> tuple[int, bytes]:
        """The sequence and the bytes of a request for `frame` signatures."""
        if frame not in self._frames:
            self._frames[frame] = itertools.cycle([_passports(frame, n) for n in range(8)])
        sequence = next(self._sequence)
        head = pb.SignRequest(sequence=sequence, profile=next(self._profiles))
        return sequence, head.SerializeToString() + next(self._frames[frame])


class Raw:
    """Channels to one target; what `Streams` and `Unary` share by having it."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._credentials = _credentials(setup.tls) if setup.tls else None
        self.channels: list[grpc.aio.Channel] = []

    async def open(self) -> None:
        self.channels = [self._channel() for _ in range(self._setup.connections)]
        async with asyncio.timeout(20):
            await asyncio.gather(*(channel.channel_ready() for channel in self.channels))

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self.channels))

    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._setup.target, OPTIONS)
        return grpc.aio.secure_channel(self._setup.target, self._credentials, OPTIONS)


class Streams:
    """SignStream: one stream for each connection, `at_once` frames under way on it."""

    def __init__(self, setup: Setup) -> None:
        self._raw = Raw(setup)
        self._requests = Requests(setup.profiles)
        self._calls: list[Any] = []

    async def open(self) -> None:
        await self._raw.open()
        self._calls = [
            channel.stream_stream(
                "/kmsapi.v1.Signing/SignStream",
                response_deserializer=pb.SignResponse.FromString,
            )()
            for channel in self._raw.channels
        ]

    async def close(self) -> None:
        for call in self._calls:
            await call.done_writing()
        await self._raw.close()

    async def run(self, order: Order, count: Count) -> None:
        await asyncio.gather(*(self._drive(call, order, count) for call in self._calls))

    async def _drive(self, call: Any, order: Order, count: Count) -> None:
        sent: dict[int, float] = {}

        async def send() -> None:
            sequence, request = self._requests.next(order.frame)
            sent[sequence] = clock()
            await call.write(request)

        for _ in range(order.at_once):
            await send()
        while sent:
            response = await call.read()
            if response is grpc.aio.EOF:
                raise RuntimeError(f"the stream ended: {await call.details()}")
            now = clock()
            _note(response, sent.pop(response.sequence), now, order.frame, count)
            if response.HasField("refusal"):
                again = response.refusal.metadata.get("retry_after_seconds", PAUSE)
                await asyncio.sleep(float(again))
            if now < order.end:
                await send()


class Unary:
    """Sign: `at_once` calls under way on each connection, or `rate` calls a second."""

    def __init__(self, setup: Setup) -> None:
        self._raw = Raw(setup)
        self._requests = Requests(setup.profiles)
        self._methods: deque[Any] = deque()

    async def open(self) -> None:
        await self._raw.open()
        self._methods = deque(
            channel.unary_unary(
                "/kmsapi.v1.Signing/Sign", response_deserializer=pb.SignResponse.FromString
            )
            for channel in self._raw.channels
        )

    async def close(self) -> None:
        await self._raw.close()

    async def run(self, order: Order, count: Count) -> None:
        async def call(began: float) -> None:
            self._methods.rotate()
            _, request = self._requests.next(order.frame)
            try:
                response = await self._methods[0](request, timeout=5)
            except grpc.aio.AioRpcError as error:
                if error.code() is OVERLOADED:
                    count.refused(began, clock(), order.frame)
                    if not order.rate:
                        await asyncio.sleep(PAUSE)
                else:
                    count.failed(error.details())
            else:
                _note(response, began, clock(), order.frame, count)

        if order.rate:
            await open_loop(order, call)
        else:
            callers = order.at_once * len(self._methods)
            await closed_loop(order, callers, lambda: call(clock()))


def _note(response: Any, began: float, ended: float, frame: int, count: Count) -> None:
    if response.HasField("refusal"):
        if response.refusal.code == OVERLOADED.value[0]:
            count.refused(began, ended, frame)
        else:
            count.failed(response.refusal.message)
        return
    signed = sum(1 for result in response.results if result.signed.identity)
    count.signed(began, ended, signed)
    if signed != frame:
        count.failed(f"{signed} of {frame} signed: {response.results[0].refusal.message}")


def _passports(frame: int, variant: int) -> bytes:
    message = pb.SignRequest()
    for item in range(frame):
        message.passports.add(
            orig_tn=ORIG,
            dest_tn=[dest(frame * variant + item)],
            shaken=pb.Shaken(attest=pb.ATTESTATION_A),
        )
    return message.SerializeToString()


def _credentials(tls: tuple[str, ...]) -> grpc.ChannelCredentials:
    ca, certificate, key = (Path(path).read_bytes() for path in tls)
    return grpc.ssl_channel_credentials(ca, key, certificate)
