"""Which STI-CA is asked: a profile names several in order, and some of them may be in back-off.

Pure. A failure makes a `Health`, and a Health says until when its STI-CA is left alone; when that
time is over the preferred one is asked again. What a failure is was said by `failures`: those of
the STI-PA and of this host say nothing about an STI-CA and change nothing here.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

from kmsd.errors import KmsdError, Unavailable
from kmsd.failures import FailureClass, failure_class
from kmsd.model import Value

DAY = 86_400

PAUSES = {
    FailureClass.UNREACHABLE: (4, 900),
    FailureClass.RATE_LIMITED: (60, 3600),
    FailureClass.STALE: (4, 900),
    FailureClass.REFUSED: (3600, DAY),
    FailureClass.BAD_CHAIN: (3600, DAY),
    FailureClass.PROOF_REFUSED: (3600, DAY),
}
"""Seconds of back-off after the first failure, and at most; twice as long with each failure."""

FORGIVEN_ONCE = frozenset({FailureClass.STALE, FailureClass.PROOF_REFUSED})
"""What a new order at the same STI-CA may heal, with a fresh SPC token."""

NO = frozenset({FailureClass.REFUSED, FailureClass.BAD_CHAIN, FailureClass.PROOF_REFUSED})
"""What an STI-CA says again when it is asked again: a person must look at it."""


class Health(Value, frozen=True):
    """How an STI-CA fared lately.

    failures: in a row, at least 1. klass: of the last one. until: it is not asked before, seconds
    UTC. profile: whose account fared so there; empty: it does not answer, whoever asks. reason,
    message: of the last failure's error, met at `at`. since: when the row of failures began.
    """

    issuer: str
    failures: int
    klass: FailureClass
    until: int
    profile: str = ""
    reason: str = ""
    message: str = ""
    since: int = 0
    at: int = 0

    def holds(self, now: int) -> bool:
        """Whether it is in back-off. Before `at`, the clock was set back: then it says nothing."""
        return self.at <= now < self.until

    def refuses(self, now: int) -> bool:
        """Whether it said no, and is not to be asked again yet."""
        return self.klass in NO and self.holds(now)


class Ask(Value, frozen=True):
    """Ask this STI-CA. instead_of: those before it in order, which are in back-off."""

    issuer: str
    instead_of: tuple[str, ...] = ()


class Later(Value, frozen=True):
    """All are in back-off; the first of them may be asked at `until` (seconds UTC)."""

    until: int


Choice = Ask | Later


def choose(
    names: Sequence[str], healths: Iterable[Health], now: int, avoid: Iterable[str] = ()
) -> Choice:
    """The first STI-CA in order (`names`, at least one) that may be asked at `now`.

    healths: of any STI-CAs, those of other profiles left out; several of one add up. avoid: asked
    only where there is no other one, however long the others are in back-off.
    """
    shunned = frozenset(avoid)
    wanted = [name for name in names if name not in shunned] or list(names)
    ready = dict.fromkeys(wanted, 0)
    for health in healths:
        if health.issuer in ready and health.holds(now):
            ready[health.issuer] = max(ready[health.issuer], health.until)
    for place, name in enumerate(wanted):
        if ready[name] <= now:
            return Ask(name, tuple(wanted[:place]))
    return Later(min(ready.values()))


def after_failure(
    healths: Iterable[Health], issuer: str, profile: str, error: KmsdError, now: int
) -> Health | None:
    """How the STI-CA fares after `error` came of asking it for `profile`; None: not its doing.

    healths: as in `choose`. What is told while the STI-CA is in back-off for it is the same
    failure, met by somebody who had asked before: it is counted once.
    """
    klass = failure_class(error)
    if klass not in PAUSES:
        return None
    # One that does not answer answers nobody; anything else it may say to one account alone.
    whose = "" if klass is FailureClass.UNREACHABLE else profile
    before = next((h for h in healths if (h.issuer, h.profile) == (issuer, whose)), None)
    if before is not None and before.klass is klass and before.holds(now):
        return before
    failures = before.failures + 1 if before is not None and before.klass is klass else 1
    asked = math.ceil(error.retry_after) if isinstance(error, Unavailable) else 0
    pause = max(_pause(klass, failures, asked, f"{issuer} {whose} {now}"), asked)
    return Health(
        issuer=issuer,
        failures=failures,
        klass=klass,
        until=now + pause,
        profile=whose,
        reason=error.reason,
        message=error.message,
        since=before.since if before is not None and failures > 1 else now,
        at=now,
    )


def all_refuse(names: Iterable[str], healths: Iterable[Health], now: int) -> bool:
    """Whether no STI-CA of a profile is left that may still issue: all said no, of late."""
    said_no = {health.issuer for health in healths if health.refuses(now)}
    return said_no.issuperset(names)


def _pause(klass: FailureClass, failures: int, asked: int, seed: str) -> int:
    """Seconds, three quarters to five quarters of the class's: not all come back at once.

    asked: what the STI-CA wants, 0 when it does not say.
    """
    if klass in FORGIVEN_ONCE:
        failures -= 1
        if not failures:
            return 0
    first, longest = PAUSES[klass]
    if klass is FailureClass.RATE_LIMITED and asked:
        first = asked  # it knows best, and is believed less each time it does not help
    full = min(first << min(failures - 1, 20), longest)
    dice = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    return full * 3 // 4 + (full // 2 * dice >> 32)
