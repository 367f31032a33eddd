"""Calls of single PASSporTs: how they wait, and the frames they travel in.

Nothing here waits or sends; the clock (`time.monotonic` seconds) is an argument.
Not here: which stream takes a frame (`dispatch`), and how it travels (`streams`).
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from kmsapi.v1 import signing_pb2 as pb

from kmsd_client.answers import Signed
from kmsd_client.errors import DeadlineExceeded, SigningError

if TYPE_CHECKING:
    from kmsd_client.streams import Stream

LARGEST_WIRE: Final = 2048
"""Bytes of a PASSporT that may travel with others. A signer ends a stream for a message that is
too large, and what one caller made too large is no concern of the others."""

GATHER: Final = 0.002
"""Seconds for which calls wait for company while others of their profile are under way."""

SILENCE: Final = 1.0
"""Seconds a signer may owe an answer that nobody waits for any more before it is given up."""


class Promise(Protocol):
    """Where the outcome of a call goes: an asyncio.Future, or what a thread waits on."""

    def done(self) -> bool: ...
    def set_result(self, result: Signed, /) -> object: ...
    def set_exception(self, exception: Exception, /) -> object: ...


class Call:
    """One PASSporT and who waits for it.

    wire: an encoded SignRequest that holds the PASSporT alone (`passports.to_wire`).
    within: seconds the caller gave it, all told. deadline: when they are over.
    """

    __slots__ = ("deadline", "profile", "promise", "wire", "within")

    def __init__(
        self, wire: bytes, profile: str, within: float, deadline: float, promise: Promise
    ) -> None:
        self.wire = wire
        self.profile = profile
        self.within = within
        self.deadline = deadline
        self.promise = promise

    def fail(self, error: Exception) -> None:
        """Tells the caller, unless the caller has gone."""
        if not self.promise.done():
            self.promise.set_exception(error)

    def expire(self) -> None:
        """Tells the caller that time is up."""
        message = f"No signer answered within {self.within:g} s."
        self.fail(DeadlineExceeded("DEADLINE_EXCEEDED", message))


class Frame:
    """Calls of one profile that travel together.

    sequence: what the answer is told by. sent_at: when it last left.
    refused_by: the streams that could not take it, and are not asked again.
    broke: the streams that broke under it. error: what the last of them said.
    """

    __slots__ = ("broke", "calls", "error", "profile", "refused_by", "sent_at", "sequence")

    def __init__(self, sequence: int, profile: str, calls: list[Call]) -> None:
        self.sequence = sequence
        self.profile = profile
        self.calls = calls
        self.sent_at = 0.0
        self.refused_by: frozenset[Stream] = frozenset()
        self.broke: frozenset[Stream] = frozenset()
        self.error: SigningError | None = None

    def encoded(self, now: float) -> bytes:
        """The SignRequest: encoded messages one after the other are one message.

        It is worth signing as long as anybody waits: for the most patient of its callers.
        """
        left = max(call.deadline for call in self.calls) - now
        head = pb.SignRequest(
            sequence=self.sequence, profile=self.profile, timeout_ms=max(1, int(left * 1000))
        )
        return b"".join([head.SerializeToString(), *[call.wire for call in self.calls]])

    def waiting(self) -> list[Call]:
        """The calls whose callers have not got their outcome and have not gone."""
        return [call for call in self.calls if not call.promise.done()]

    def fail(self, error: SigningError) -> None:
        """Tells everybody, each with an error of their own: a raised error gathers a traceback."""
        for call in self.calls:
            call.fail(type(error)(*error.args))

    def given_up_at(self) -> float:
        """When a signer that has not answered is past hope."""
        return max(self.sent_at + SILENCE, max(call.deadline for call in self.calls))


class Waiting:
    """Calls that no frame has taken yet, by profile, profiles in turn."""

    def __init__(self) -> None:
        self._profiles: OrderedDict[str, OrderedDict[Call, None]] = OrderedDict()
        self._calls = 0

    def __len__(self) -> int:
        return self._calls

    def __iter__(self) -> Iterator[Call]:
        for calls in self._profiles.values():
            yield from calls

    def profiles(self, at_most: int) -> list[str]:
        """The first of those with calls that wait, in the order in which they are to be served."""
        return list(islice(self._profiles, at_most))

    def ready(self, profile: str, items: int, now: float) -> bool:
        """Whether the profile has so many, or one that has waited for GATHER."""
        calls = self._profiles[profile]
        if len(calls) >= items:
            return True
        first = next(iter(calls))
        return now - (first.deadline - first.within) >= GATHER

    def add(self, call: Call) -> None:
        """At the end of its profile's queue."""
        calls = self._profiles.get(call.profile)
        if calls is None:
            calls = self._profiles[call.profile] = OrderedDict()
        calls[call] = None
        self._calls += 1

    def remove(self, call: Call) -> None:
        """Takes out a call whose caller has gone; one that is not here is none of ours."""
        calls = self._profiles.get(call.profile)
        if calls is not None and call in calls:
            del calls[call]
            self._took(call.profile, calls, 1)

    def take(self, profile: str, items: int, now: float) -> list[Call]:
        """The first calls of a profile, at most so many; one that is late is told so instead."""
        calls = self._profiles[profile]
        taken: list[Call] = []
        before = len(calls)
        while calls and len(taken) < items:
            call, _ = calls.popitem(last=False)
            if call.deadline <= now:
                call.expire()
            elif not call.promise.done():
                taken.append(call)
        if calls:
            self._profiles.move_to_end(profile)
        self._took(profile, calls, before - len(calls))
        return taken

    def expire(self, now: float) -> float:
        """Takes out and tells those whose time is up; gives when the next one's is."""
        for call in [call for call in self if call.deadline <= now]:
            self.remove(call)
            call.expire()
        return min((call.deadline for call in self), default=inf)

    def take_all(self) -> list[Call]:
        """Every call; none waits after that."""
        calls = list(self)
        self._profiles.clear()
        self._calls = 0
        return calls

    def _took(self, profile: str, calls: OrderedDict[Call, None], items: int) -> None:
        self._calls -= items
        if not calls:
            del self._profiles[profile]


def expire(calls: Iterable[Call], now: float) -> float:
    """Tells those whose time is up; gives when the next one's is."""
    soonest = inf
    for call in calls:
        if call.promise.done():
            continue
        if call.deadline <= now:
            call.expire()
        elif call.deadline < soonest:
            soonest = call.deadline
    return soonest
