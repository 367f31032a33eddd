"""The rotation plan of one profile: what its credentials and policy ask for at a moment.

Pure; the keeper carries it out. The first credential is a person's decision (`kmsctl enroll`);
from then on renewals are the plan's. What the STI-CA suggests (RFC 9773) goes before a fraction
of the lifetime; maintenance windows and pauses after failures delay either, but never past the
floor: the moment from which a renewal waits for nothing.
"""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from kmsd import maintenance
from kmsd.enrollment import DAY, ON_THE_WAY
from kmsd.model import Active, Credential, Failed, Value
from kmsd.settings import Policy

HOUR = 3600
SHORTEST, SHORTEST_OF_LONG = 15, 900
"""Seconds between a failed renewal and the next one, at least: for an hour's lifetime, and for
the longest; between them, a 240th of the lifetime."""


class Hints(Value, frozen=True):
    """What is known of credentials from outside. Keys are credential ids.

    renew_at: the moment inside the STI-CA's suggested window (`renewal.renewal_moment`), seconds
    UTC. condemned: why nobody may go on trusting it, a reason as in errors: CREDENTIAL_REVOKED
    (on the STI-PA's CRL), ISSUER_NOT_TRUSTED (its STI-CA left the STI-PA's list).
    """

    renew_at: dict[str, int] = msgspec.field(default_factory=dict)
    condemned: dict[str, str] = msgspec.field(default_factory=dict)


class Keep(Value, frozen=True):
    """Nothing to begin before `until` (0: the profile has no active credential).

    why: NOT_ENROLLED, ARI, FRACTION, FLOOR, WINDOW (it waits for a maintenance window), RETRY
    (it failed and is tried again), RECALLED (a person went back to it: nothing before its floor).
    """

    until: int
    why: str


class Renew(Value, frozen=True):
    """Begin a new credential now.

    why: as in Keep, or CONDEMNED. urgent: below the floor, or condemned.
    """

    why: str
    urgent: bool = False


class Expect(Value, frozen=True):
    """A credential is on its way already."""

    credential: str


Step = Keep | Renew | Expect

NO_HINTS = Hints()


def plan(
    now: int, credentials: Iterable[Credential], policy: Policy, hints: Hints = NO_HINTS
) -> Step:
    """What the profile with these credentials (any order) needs at `now` (seconds UTC).

    Rehearsals count for nothing here: they neither replace a renewal nor hold one up.
    """
    real = [credential for credential in credentials if not credential.rehearsal]
    for credential in real:
        if isinstance(credential.state, ON_THE_WAY):
            return Expect(credential.id)
    active = active_of(real)
    if active is None:
        return Keep(until=0, why="NOT_ENROLLED")
    # A clock that was set back makes failures of the future: they hold nothing up.
    failures = [at for at in failures_of(active, real) if at <= now]
    due, why = next_renewal(now, active, failures, policy, hints)
    if now < due:
        return Keep(until=due, why=why)
    condemned = condemned_for(active, hints) != ""
    return Renew(why, urgent=condemned or now >= floor_of(active, policy))


def next_renewal(
    now: int, active: Credential, failures: Sequence[int], policy: Policy, hints: Hints = NO_HINTS
) -> tuple[int, str]:
    """When an active credential is renewed (seconds UTC; past: now), and why then.

    failures: moments of the renewals of it that failed (`failures_of`).
    """
    due, why = renewal_time(active, policy, hints)
    condemned = why == "CONDEMNED"
    if failures:
        retry = max(failures) + _pause(active, failures, policy, condemned=condemned)
        due, why = max((retry, "RETRY"), (due, why))
    if condemned or not policy.windows or max(now, due) >= floor_of(active, policy):
        return due, why
    return _in_window(now, due, why, active, policy)


def renewal_time(active: Credential, policy: Policy, hints: Hints = NO_HINTS) -> tuple[int, str]:
    """When it would be renewed and why, with no failure and no window in between."""
    state = _state(active)
    if condemned_for(active, hints):
        return 0, "CONDEMNED"
    floor = floor_of(active, policy)
    if state.recalled:
        return floor, "RECALLED"
    if active.id in hints.renew_at:
        due, why = hints.renew_at[active.id], "ARI"
    else:
        _, lifetime = _validity(active)
        jitter = spread(active.id, int(lifetime * policy.jitter))
        due = state.certificate.not_before + int(lifetime * policy.renew_at) + jitter
        why = "FRACTION"
    return (due, why) if due <= floor else (floor, "FLOOR")


def floor_of(active: Credential, policy: Policy) -> int:
    """The moment from which a renewal waits neither for a window nor for the STI-CA's wish."""
    not_after, lifetime = _validity(active)
    return not_after - int(lifetime * policy.floor)


def active_of(credentials: Iterable[Credential]) -> Credential | None:
    """What the profile signs with; the newest, should there ever be two."""
    active = [one for one in credentials if isinstance(one.state, Active)]
    return max(active, key=_since, default=None)


def failures_of(active: Credential, credentials: Iterable[Credential]) -> tuple[int, ...]:
    """When renewals of `active` failed, oldest first."""
    failed = (one.state.at for one in credentials if isinstance(one.state, Failed))
    return tuple(sorted(at for at in failed if at >= _since(active)))


def condemned_for(credential: Credential, hints: Hints) -> str:
    """The reason why nobody may go on trusting a credential; empty: there is none."""
    if credential.revocation is not None:
        return "CREDENTIAL_REVOKED"
    if credential.condemned is not None:
        return "REVOCATION_ASKED"
    return hints.condemned.get(credential.id, "")


def patience(now: int, active: Credential) -> int:
    """Seconds that nothing on the way to the successor of `active` should be paused for longer:
    a 24th of what is left of it. An STI-CA in back-off for longer is asked all the same."""
    not_after, _ = _validity(active)
    return max((not_after - now) // 24, _shortest(active))


def holding_time(policy: Policy, freshness: int = 0) -> int:
    """Seconds from a credential's retirement to the destruction of its key.

    freshness: seconds for which a PASSporT is fresh; no key goes before its last one is stale.
    """
    return max(int(policy.hold_key_days * DAY), freshness)


def spread(seed: str, width: int) -> int:
    """From 0 to `width`, evenly over seeds and always the same for one: a restart throws no dice.

    width: seconds.
    """
    dice = int.from_bytes(hashlib.sha256(b"kmsd spread\0" + seed.encode()).digest(), "big")
    return dice * width >> 256


def _pause(active: Credential, failures: Sequence[int], policy: Policy, *, condemned: bool) -> int:
    """Seconds from the last failure to the next attempt: twice as long each time, as long as there
    is patience, and never from above the floor to below it."""
    last, floor = max(failures), floor_of(active, policy)
    longest = min(patience(last, active), HOUR if condemned else DAY)
    pause = min(_shortest(active) << min(len(failures) - 1, 20), longest)
    return min(pause, floor - last) if last < floor else pause


def _shortest(active: Credential) -> int:
    _, lifetime = _validity(active)
    return min(max(lifetime // 240, SHORTEST), SHORTEST_OF_LONG)


def _in_window(now: int, due: int, why: str, active: Credential, policy: Policy) -> tuple[int, str]:
    """`due` if a window is open then, else somewhere in the next one: not all at its opening.

    Where the next one is past the floor: in the one before, unless that is far too early. Where
    there is none to be had: at `due`, for waiting longer would only cost safety.
    """
    spans = [span for text in policy.windows for span in maintenance.parse(text)]
    floor = floor_of(active, policy)

    def within(moment: int) -> int:
        begin, end = maintenance.opening(moment, spans)
        return moment if begin <= moment else begin + spread(active.id, end - begin)

    moment = within(due)
    if moment >= floor and why != "RETRY":
        begin, end = maintenance.last(due, spans)
        moment = begin + spread(active.id, end - begin)
        if moment < _early(active, policy):
            return due, why
    if moment < now:  # nobody was there to do it
        moment = within(now)
    if moment >= floor:
        return due, why
    return moment, why if moment == due else "WINDOW"


def _early(active: Credential, policy: Policy) -> int:
    """Before this moment nothing is renewed for a window's sake: half of what is waited else."""
    _, lifetime = _validity(active)
    return _state(active).certificate.not_before + int(lifetime * policy.renew_at / 2)


def _validity(active: Credential) -> tuple[int, int]:
    """not_after (seconds UTC) and the lifetime (seconds)."""
    certificate = _state(active).certificate
    return certificate.not_after, certificate.not_after - certificate.not_before


def _since(active: Credential) -> int:
    return _state(active).since


def _state(active: Credential) -> Active:
    assert isinstance(active.state, Active)  # noqa: S101  the caller's promise
    return active.state
