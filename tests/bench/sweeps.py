"""The two long measurements: many profiles, and latency against offered load."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import grpc
from kmsapi.v1 import signing_pb2 as pb

from tests.bench.measures import Measurement, Pace, alternate, callers, streams
from tests.bench.stage import Server, host, signers
from tests.system.signing_host import SigningHost


@dataclass(frozen=True)
class Crowd:
    """So many profiles that share so many keys on one token."""

    profiles: int
    keys: int

    @property
    def name(self) -> str:
        return f"profiles_{self.profiles}"


CROWDS = (Crowd(1, 1), Crowd(100, 100), Crowd(1000, 1000), Crowd(10_000, 1000))
LOADS = (25, 50, 75, 100, 150)
CALLERS = 1000


def crowds(
    stack: ExitStack, folder: Path, wanted: Sequence[Crowd], pace: Pace
) -> tuple[list[Measurement], dict[str, float]]:
    """Streams of 64 over all profiles of each crowd, and how long a signer takes to start there.

    Gives the measurements and the starts in seconds, by the crowd's name.
    """
    hosts = {crowd: _host(folder, crowd) for crowd in wanted}
    starts = {
        crowd.name: median(start_to_first(at) for _ in range(pace.rounds))
        for crowd, at in hosts.items()
    }
    measurements = []
    for crowd, at in hosts.items():
        server = signers(stack, at)
        load = server.balanced(server.crew(stack, "streams"))
        measurements.append(streams(load, server, 64, crowd.name))
    alternate(measurements, pace)
    return measurements, starts


def start_to_first(at: SigningHost) -> float:
    """Seconds from a signer's start to its first signature, for the last of its profiles."""
    last = pb.Passport(
        orig_tn="12155550112", dest_tn=["12155550113"], shaken=pb.Shaken(attest=pb.ATTESTATION_A)
    )
    request = pb.SignRequest(profile=at.profiles[-1], passports=[last])
    options = (("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 20))
    begun = time.monotonic()
    with at.signer(1), grpc.insecure_channel(f"127.0.0.1:{at.port}", options) as channel:
        sign = channel.unary_unary(
            "/kmsapi.v1.Signing/Sign",
            request_serializer=pb.SignRequest.SerializeToString,
            response_deserializer=pb.SignResponse.FromString,
        )
        while True:
            try:
                sign(request, timeout=30, wait_for_ready=True)
                return time.monotonic() - begun
            except grpc.RpcError:
                if time.monotonic() > begun + 60:
                    raise
                time.sleep(0.005)


def offered(
    stack: ExitStack, server: Server, loads: Sequence[int], pace: Pace
) -> tuple[Measurement, list[Measurement]]:
    """Single calls through `kmsd_client` at shares of its capacity, in per cent.

    Calls come at their rate whatever becomes of them; latency counts from when a call was due.
    Gives the capacity, measured between the others, and the others.
    """
    load = server.crew(stack, "calls")
    capacity = callers(load, server, CALLERS)
    capacity.name = "capacity"
    alternate([capacity], pace)
    calls_per_s = median(capacity.per_s())
    capacity.rounds.clear()
    shares = [
        Measurement(f"load_{share}", load, server, rate=calls_per_s * share / 100)
        for share in loads
    ]
    alternate([capacity, *shares], pace)
    return capacity, shares


def _host(folder: Path, crowd: Crowd) -> SigningHost:
    return host(folder / crowd.name, profiles=crowd.profiles, keys=crowd.keys)
