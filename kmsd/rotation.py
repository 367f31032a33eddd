"""The rotation plan of one profile: what its credentials and policy ask for at a moment.

Pure; the keeper carries it out. The first credential is a person's decision (`kmsctl enroll`);
from then on renewals are the plan's.
"""

from kmsd.enrollment import DAY, ON_THE_WAY
from kmsd.model import Active, Credential, Failed, Value
from kmsd.settings import Policy

RETRY_AFTER_FAILURE = DAY // 24
"""Seconds between a failed renewal and the next one."""


class Keep(Value, frozen=True):
    """Nothing to begin before `until` (0: the profile has never been enrolled)."""

    until: int


class Renew(Value, frozen=True):
    """Begin a new credential now."""


class Expect(Value, frozen=True):
    """A credential is on its way already."""

    credential: str


Step = Keep | Renew | Expect


def plan(now: int, credentials: list[Credential], policy: Policy) -> Step:
    """What the profile with these credentials (any order) needs at `now` (seconds UTC)."""
    for credential in credentials:
        if isinstance(credential.state, ON_THE_WAY):
            return Expect(credential.id)
    active = [c for c in credentials if isinstance(c.state, Active)]
    if not active:
        return Keep(until=0)
    due = max(renewal_time(c, policy) for c in active)
    failed = [c.state.at for c in credentials if isinstance(c.state, Failed)]
    if failed:
        due = max(due, max(failed) + RETRY_AFTER_FAILURE)
    return Renew() if now >= due else Keep(until=due)


def renewal_time(credential: Credential, policy: Policy) -> int:
    """When an active credential is renewed: a fraction of its lifetime; at once if revoked."""
    assert isinstance(credential.state, Active)  # noqa: S101  the caller's promise
    if credential.revocation is not None:
        return 0
    certificate = credential.state.certificate
    lifetime = certificate.not_after - certificate.not_before
    return certificate.not_before + int(lifetime * policy.renew_at)
