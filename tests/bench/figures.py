"""Set-ups and orders of the load, tallies, rounds, rows, ratios and their targets. Pure."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Final

import msgspec

STEP: Final = math.log(1.02)
"""Latencies are counted in classes of 2 %."""


class Setup(msgspec.Struct, frozen=True):
    """What a load process is for.

    kind: of load, as `worker` knows them. target: host:port. tls: paths of CA, certificate and
    key; empty for plaintext. profiles: names to sign for, in turn. connections: for each process.
    hsm: module, token label, path of the PIN, key id, for the kind that has an HSM of its own.
    """

    kind: str
    target: str = ""
    tls: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ("acme",)
    connections: int = 4
    hsm: tuple[str, ...] = ()
    environment: dict[str, str] = {}


class Order(msgspec.Struct, frozen=True):
    """One round, for one load process. Times are of the monotonic clock, which processes share.

    begin, end: what is answered in between counts; the load begins before. frame: signatures in
    a message. at_once: messages under way on each connection, or callers in the process.
    rate: calls a second that the process makes whatever becomes of them; 0: as fast as answered.
    """

    begin: float
    end: float
    frame: int = 1
    at_once: int = 1
    rate: float = 0.0


class Tally(msgspec.Struct):
    """What a load process counted: signatures, refusals for overload, and everything else.

    latencies: how many signatures took so long, by class. refusals: the same of refusals.
    """

    signed: int = 0
    refused: int = 0
    failed: int = 0
    why: str = ""
    latencies: dict[int, int] = {}
    refusals: dict[int, int] = {}

    def merge(self, other: "Tally") -> None:
        """Adds what another process counted."""
        self.signed += other.signed
        self.refused += other.refused
        self.failed += other.failed
        self.why = self.why or other.why
        _count(self.latencies, other.latencies)
        _count(self.refusals, other.refusals)


class Round(msgspec.Struct, frozen=True):
    """One round of one measurement; fields as in `Row`, None where there is nothing to say."""

    per_s: float
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    signer_cpu_us: float
    client_cpu_us: float
    refused_per_s: float = 0.0
    refusal_p99_ms: float | None = None
    failed: int = 0
    why: str = ""


class Row(msgspec.Struct, frozen=True):
    """One line of the result: medians of its rounds.

    per_s: signatures a second. p50_ms, p99_ms, p999_ms: from a message's sending to its answer.
    signer_cpu_us, client_cpu_us: CPU time of all signer and all load processes for a signature.
    rss_mib: peak memory of the largest signer process. client_rss_mib: of a load process.
    failed: calls that ended with an error other than overload, of all rounds; why: of one.
    """

    name: str
    frame: int
    per_s: float
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    signer_cpu_us: float
    client_cpu_us: float
    rss_mib: float
    client_rss_mib: float
    refused_per_s: float
    refusal_p99_ms: float | None
    failed: int
    why: str


class Ratio(msgspec.Struct, frozen=True):
    """A figure with a target. `unit` is empty for a ratio."""

    name: str
    what: str
    target: float
    at_most: bool = False
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether `value` is as good as the target."""
        return value <= self.target if self.at_most else value >= self.target


RATIOS: Final = (
    Ratio("stream64_vs_ceiling", "stream, 64 a frame / HSM ceiling", 0.80),
    Ratio("stream64_vs_secsipidx", "stream, 64 a frame / secsipidx, software key", 1.10),
    Ratio("signer_cpu64_vs_hsm", "signer CPU a signature, 64 a frame / HSM alone", 1.20, True),
    Ratio("client1000_vs_ceiling", "kmsd_client, 1000 callers / HSM ceiling", 0.45),
    Ratio("unary_vs_echo", "unary / unary echo of the same gRPC", 0.70),
    Ratio("profiles10000_vs_1", "10 000 profiles / 1 profile", 0.97),
    Ratio("tls_vs_plain", "stream, 64 a frame: mutual TLS / plaintext", 0.92),
    Ratio("overload_goodput", "accepted at 150 % offered / capacity", 0.90),
)

FIGURES: Final = (
    Ratio("slow_hsm_vs_sessions", "2 ms HSM: throughput / (sessions / 2 ms)", 0.90),
    Ratio("half_load_p99", "p99 at 50 % load, single calls", 5.0, True, "ms"),
    Ratio("half_load_p99_vs_p50", "the same / p50", 8.0, True),
    Ratio("overload_p99", "p99 of what is accepted at 150 %", 50.0, True, "ms"),
    Ratio("overload_refusal_p99", "p99 of a refusal at 150 %", 2.0, True, "ms"),
    Ratio("profiles_memory", "signer memory, 10 000 profiles - 1 profile", 40.0, True, "MiB"),
    Ratio("start_1", "start to first signature, 1 profile", 1.0, True, "s"),
    Ratio("start_10000", "start to first signature, 10 000 profiles", 5.0, True, "s"),
)


def latency_class(seconds: float) -> int:
    """The class a latency is counted in."""
    return round(math.log(max(seconds, 1e-7) * 1e6) / STEP)


def quantile_ms(latencies: Mapping[int, int], share: float) -> float | None:
    """The latency, in ms, that `share` of those counted do not exceed; None when there are none."""
    wanted = share * sum(latencies.values())
    for number, count in sorted(latencies.items()):
        wanted -= count
        if wanted <= 0:
            return math.exp(number * STEP) / 1000
    return None


def round_of(tally: Tally, seconds: float, signer_cpu: float, client_cpu: float) -> Round:
    """A round from what all load processes counted. CPU: seconds of all processes together."""
    each = 1e6 / tally.signed if tally.signed else 0.0
    return Round(
        per_s=tally.signed / seconds,
        p50_ms=quantile_ms(tally.latencies, 0.5),
        p99_ms=quantile_ms(tally.latencies, 0.99),
        p999_ms=quantile_ms(tally.latencies, 0.999),
        signer_cpu_us=signer_cpu * each,
        client_cpu_us=client_cpu * each,
        refused_per_s=tally.refused / seconds,
        refusal_p99_ms=quantile_ms(tally.refusals, 0.99),
        failed=tally.failed,
        why=tally.why,
    )


def row_of(
    name: str, frame: int, rounds: Sequence[Round], rss_mib: float, client_rss_mib: float
) -> Row:
    """The medians of a measurement's rounds."""

    def middle(of: Callable[[Round], float | None]) -> float | None:
        known = [value for one in rounds if (value := of(one)) is not None]
        return median(known) if known else None

    return Row(
        name=name,
        frame=frame,
        per_s=median(one.per_s for one in rounds),
        p50_ms=middle(lambda one: one.p50_ms),
        p99_ms=middle(lambda one: one.p99_ms),
        p999_ms=middle(lambda one: one.p999_ms),
        signer_cpu_us=median(one.signer_cpu_us for one in rounds),
        client_cpu_us=median(one.client_cpu_us for one in rounds),
        rss_mib=rss_mib,
        client_rss_mib=client_rss_mib,
        refused_per_s=median(one.refused_per_s for one in rounds),
        refusal_p99_ms=middle(lambda one: one.refusal_p99_ms),
        failed=sum(one.failed for one in rounds),
        why=next((one.why for one in rounds if one.why), ""),
    )


def ratio(above: Iterable[float], below: Iterable[float]) -> float | None:
    """The median of the rounds' ratios: both sides of each were measured moments apart."""
    pairs = [one / other for one, other in zip(above, below, strict=True) if other]
    return median(pairs) if pairs else None


def _count(into: dict[int, int], more: Mapping[int, int]) -> None:
    for number, count in more.items():
        into[number] = into.get(number, 0) + count
