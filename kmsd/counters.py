"""What a signer has done, in numbers, and which of its answers is traced.

Sums and nothing else: no clock, no lock (all of it happens in the event loop's thread), nothing
that grows with traffic. A frame is counted when it is answered: a few additions, and one more for
each signature. Not here: how the numbers are published (`metrics`).
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final

from kmsd.model import Value

Kind = tuple[str, str]
"""PASSporT type (`base` for none) and attestation ("" for none)."""
KINDS: Final[tuple[Kind, ...]] = (
    *(("shaken", attest) for attest in "ABC"),
    *((ppt, "") for ppt in ("base", "div", "rph", "rcd")),
)
BOUNDS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0)
"""Seconds: upper bounds of the histogram's buckets. Densest where a call's patience is decided:
5 ms is the aim at half load, 50 ms the longest under overload."""
MOST_NAMED: Final = 100
"""Profiles that are counted one by one. With more of them none is: each would be a time series in
every signer, for ever, and a list that named only some would say something else every day."""


class Totals(Value, frozen=True):
    """The sums at one moment.

    signed: signatures by kind, and by_profile by profile, empty where there are too many of those.
    refused: PASSporTs that got no signature, by reason. calls: requests of Sign; frames: those of
    SignStream. streams: open now. took: for each of BOUNDS and infinity the answers that took no
    longer; seconds: of all answers together.
    """

    signed: dict[Kind, int]
    by_profile: dict[str, int]
    refused: dict[str, int]
    calls: int
    frames: int
    streams: int
    took: tuple[int, ...]
    seconds: float


class Counters:
    """The sums of one signer since it started. calls, frames, streams: for whoever serves them
    to count.

    profiles: as configured. trace_every: one answer in so many is traced, and the first of each
    epoch; none when it is 0.
    """

    __slots__ = (
        "_by_profile",
        "_epoch",
        "_refused",
        "_seconds",
        "_signed",
        "_took",
        "_trace_every",
        "_until_trace",
        "calls",
        "frames",
        "streams",
    )

    def __init__(self, profiles: Collection[str], trace_every: int) -> None:
        self.calls = self.frames = self.streams = 0
        # Everything that can be named is there from the start: a counter that appears at its
        # first event has hidden it from `rate`.
        self._signed = dict.fromkeys(KINDS, 0)
        self._by_profile = dict.fromkeys(profiles if len(profiles) <= MOST_NAMED else (), 0)
        self._refused: dict[str, int] = {}
        self._took = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._trace_every = self._until_trace = trace_every
        self._epoch = -1

    def refused(self, reason: str, items: int = 1) -> None:
        """PASSporTs that got no signature; a request without any counts as one."""
        self._refused[reason] = self._refused.get(reason, 0) + (items or 1)

    def answered(self, profile: str, kinds: Sequence[Kind], epoch: int, seconds: float) -> bool:
        """An answer with a signature of each of these kinds, `seconds` after its request came.

        Says whether it is to be traced.
        """
        signed = self._signed
        for kind in kinds:
            signed[kind] += 1
        if profile in self._by_profile:
            self._by_profile[profile] += len(kinds)
        self._took[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds
        self._until_trace -= 1
        if self._until_trace and epoch <= self._epoch:
            return False
        self._until_trace = self._trace_every
        self._epoch = max(epoch, self._epoch)  # a frame of the last epoch may end after its end
        return self._trace_every > 0

    def totals(self) -> Totals:
        """The sums now, for another thread to read."""
        return Totals(
            signed=dict(self._signed),
            by_profile=dict(self._by_profile),
            refused=dict(self._refused),
            calls=self.calls,
            frames=self.frames,
            streams=self.streams,
            took=tuple(accumulate(self._took)),
            seconds=self._seconds,
        )


def stages(*moments: float) -> Iterator[int]:
    """Whole microseconds between each of these moments (seconds) and the next."""
    return (round((end - start) * 1e6) for start, end in pairwise(moments))
