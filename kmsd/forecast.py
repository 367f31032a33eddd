"""The calendar: what will happen to every profile's credentials, if all goes well.

Pure. The future is played with the plan itself (`rotation`): every renewal succeeds at once, and
every certificate lasts as long as the one before it. What an STI-CA will suggest (RFC 9773) is
known for credentials that exist, and for no others.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import count, islice

from msgspec.structs import replace

from kmsd.enrollment import DAY, ON_THE_WAY, certificate_of
from kmsd.model import Active, Credential, Doomed, Failed, Retired, Value
from kmsd.rotation import Expect, Hints, Keep, active_of, holding_time, plan
from kmsd.settings import Policy

MINUTE = 60
"""The shortest lifetime that the future is played with."""
Known = tuple[Sequence[Credential], Policy, Hints]
"""A profile's credentials (any order), its policy, and what is known from outside."""


class What(StrEnum):
    """In the order in which they are listed where they happen at the same moment."""

    ENROLL = "enroll"
    """A person is waited for."""
    RENEW = "renew"
    """A new credential is begun, and soon after active."""
    RETIRE = "retire"
    """It signs no more."""
    DESTROY_KEY = "destroy_key"
    EXPIRE = "expire"
    """Its certificate is not valid any more."""


class Planned(Value, frozen=True):
    """at: seconds UTC. credential: whose; for RENEW the one that is replaced; empty for those
    that do not exist yet. why: UPPER_SNAKE; for RENEW as in `rotation.Renew`, or ON_THE_WAY."""

    at: int
    profile: str
    credential: str
    what: What
    why: str


def forecast(
    now: int, days: int, profiles: Mapping[str, Known], limit: int | None = None
) -> list[Planned]:
    """What will happen from `now` (seconds UTC) on for `days` days, the first things first.

    limit: so many entries at most; what comes after them costs nothing. Without it the cost grows
    with what is listed: an hour's lifetime makes a long list.
    """
    ends = now + days * DAY
    calendars = [_calendar(now, ends, name, known) for name, known in sorted(profiles.items())]
    return list(islice(heapq.merge(*calendars, key=_moment), limit))


def _calendar(now: int, ends: int, profile: str, known: Known) -> Iterator[Planned]:
    """One profile's entries in order. Those of the past that are still to be done: now."""
    credentials, policy, hints = known
    ahead: list[tuple[int, int, int, Planned]] = []
    numbers = count()

    def put(planned: Iterable[Planned]) -> None:
        for one in planned:
            dated = replace(one, at=max(now, one.at))
            heapq.heappush(ahead, (*_moment(dated), next(numbers), dated))

    put(_scheduled(now, credentials))
    for rotation in _rotations(now, ends, profile, credentials, policy, hints):
        put(rotation)
        # Its first is the renewal: nothing that is begun later can come before it.
        while ahead[0][0] < rotation[0].at:
            yield heapq.heappop(ahead)[-1]
    while ahead and ahead[0][0] <= ends:
        yield heapq.heappop(ahead)[-1]


def _scheduled(now: int, credentials: Iterable[Credential]) -> Iterator[Planned]:
    """What is going to happen to the credentials there are, whatever is begun."""
    for one in credentials:
        match one.state:
            case Retired(destroy_at=at):
                yield Planned(at, one.profile, one.id, What.DESTROY_KEY, "HOLDING_TIME")
            case Doomed(destroy_at=at):
                yield Planned(at, one.profile, one.id, What.DESTROY_KEY, "ASKED")
            case Failed(destroy_at=at, birth=birth) if birth is not None:
                yield Planned(at, one.profile, one.id, What.DESTROY_KEY, "FAILED")
            case _:
                pass
        certificate = certificate_of(one.state)
        if certificate is not None and certificate.not_after > now:
            at = certificate.not_after
            yield Planned(at, one.profile, one.id, What.EXPIRE, "NOT_AFTER")


def _rotations(
    now: int,
    ends: int,
    profile: str,
    credentials: Sequence[Credential],
    policy: Policy,
    hints: Hints,
) -> Iterator[tuple[Planned, ...]]:
    """Every rotation until `ends`: the renewal and what it leads to, in order."""
    real = [one for one in credentials if not one.rehearsal]
    active, at = active_of(real), now
    if active is None:
        coming = [one.id for one in real if isinstance(one.state, ON_THE_WAY)]
        what, why = (What.RENEW, "ON_THE_WAY") if coming else (What.ENROLL, "NOT_ENROLLED")
        yield (Planned(now, profile, coming[0] if coming else "", what, why),)
        return
    first = active.id
    generation = 0
    while True:
        generation += 1
        step = plan(at, real, policy, hints)
        why = "ON_THE_WAY" if isinstance(step, Expect) else step.why
        at = step.until if isinstance(step, Keep) else at
        if at > ends:
            return
        after = _successor(active, at, f"{first} {generation}")
        assert isinstance(after.state, Active)  # noqa: S101  made so
        former = first if generation == 1 else ""
        yield (
            Planned(at, profile, former, What.RENEW, why),
            Planned(at, profile, former, What.RETIRE, "SUPERSEDED"),
            Planned(at + holding_time(policy), profile, former, What.DESTROY_KEY, "HOLDING_TIME"),
            Planned(after.state.certificate.not_after, profile, "", What.EXPIRE, "NOT_AFTER"),
        )
        active, real = after, [after]


def _successor(active: Credential, at: int, seed: str) -> Credential:
    """As active as its predecessor, from `at` on. seed: what its jitter is drawn from."""
    state = active.state
    assert isinstance(state, Active)  # noqa: S101  the caller's promise
    old = state.certificate
    lifetime = max(old.not_after - old.not_before, MINUTE)
    certificate = replace(old, not_before=at, not_after=at + lifetime)
    after = replace(state, certificate=certificate, since=at, recalled=False)
    return replace(active, id=seed, state=after, trouble=None, revocation=None, condemned=None)


_ORDER = {what: place for place, what in enumerate(What)}


def _moment(one: Planned) -> tuple[int, int]:
    return one.at, _ORDER[one.what]
