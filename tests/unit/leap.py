"""A world without a wire: STI-CAs, an HSM, an STI-CR and signers that are numbers and sets.

It carries out what the pure core asks for, by a clock that jumps to the next moment at which
something happens. At every step it holds what must never be otherwise. Nothing here decides.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from kmsd import enrollment as do
from kmsd.enrollment import ON_THE_WAY, Outcome, Wait, advance, next_action, retire_others
from kmsd.errors import KmsdError, PeerRefused, Unavailable
from kmsd.issuers import Ask, Health, Later, after_failure, all_refuse, choose
from kmsd.model import (
    Active,
    Authorized,
    BirthRecord,
    Certificate,
    Credential,
    Destroyed,
    Failed,
    Finalizing,
    Issued,
    Keyed,
    New,
    Ordered,
    Published,
    Retired,
)
from kmsd.renewal import Window, renewal_moment
from kmsd.rotation import Hints, Keep, Renew, active_of, holding_time, patience, plan
from kmsd.settings import Policy

HOUR, DAY = 3_600, 86_400
START = 1_798_761_600
"""2027-01-01, 00:00 UTC, a Friday."""
FRESH = 60
"""Seconds for which a PASSporT is fresh."""
STEP = 2
"""Seconds that every action takes."""
LOOK = 6 * HOUR
"""Seconds between two questions for renewal information."""


def down(resource: str) -> KmsdError:
    return Unavailable("ACME_TIMEOUT", "The STI-CA does not answer.", resource=resource)


def refusing(resource: str) -> KmsdError:
    return PeerRefused("ACME_UNAUTHORIZED", "The STI-CA says no.", peer="sti-ca", resource=resource)


Trouble = tuple[int, int, Callable[[str], KmsdError]]
"""From and to, seconds since START, and what comes of asking."""


@dataclass(frozen=True)
class Issuer:
    """An STI-CA. lifetime: seconds of its certificates, dated back by an hour at most."""

    lifetime: int
    troubles: tuple[Trouble, ...] = ()
    suggests: Callable[[Certificate, int], Window | None] = lambda certificate, now: None

    def certificate(self, name: str, now: int) -> Certificate:
        begins = now - min(HOUR, self.lifetime // 60)
        return Certificate("pem", name, "", "01", "", begins, begins + self.lifetime)


@dataclass
class Life:
    """What is told of one credential afterwards."""

    begun: int
    why: str
    tries: int = 0
    issuer: str = "-"
    active: int = 0
    left: float = 0.0
    destroyed: int = 0
    failed: str = ""


@dataclass
class World:
    """One profile's. issuers: in order."""

    policy: Policy
    issuers: dict[str, Issuer]
    now: int = START
    epoch: int = 0
    credentials: list[Credential] = field(default_factory=list)
    healths: dict[tuple[str, str], Health] = field(default_factory=dict)
    hsm: set[str] = field(default_factory=set)
    public: set[str] = field(default_factory=set)
    lives: dict[str, Life] = field(default_factory=dict)
    most_keys: int = 0
    unsigned: int = 0
    begun_to_sign: bool = False

    # What people ask for

    def enroll(self, why: str = "ENROLL", *, rehearsal: bool = False) -> Credential:
        number = len(self.lives) + 1
        new = Credential(
            f"{number:016x}", "acme", "1234", f"{number:032x}", self.now, New(), rehearsal=rehearsal
        )
        self.credentials.append(new)
        self.lives[new.id] = Life(self.now, why)
        return new

    # The keeper

    def run(self, until: int) -> None:
        """Everything that happens until then."""
        while self.now < until:
            if not self.tick():
                self.pass_time(min(until, max(self.now + 1, self.next_moment())))

    def tick(self) -> bool:
        """All that there is to do now; whether there was anything."""
        before = self.now
        begun = False
        for one in list(self.credentials):
            if self.step(one.id):
                begun = True
        step = plan(self.now, self.credentials, self.policy, self.hints())
        if isinstance(step, Renew):
            self.enroll(step.why)
            begun = True
        return begun or self.now != before

    def step(self, id: str) -> bool:
        """One action of one credential, if it has one; whether it had."""
        one = self.find(id)
        action = next_action(one, self.now)
        if isinstance(action, Wait):
            return False
        outcome = self.perform(one, action)
        self.pass_time(self.now + STEP)
        self.save(one, outcome)
        return True

    def next_moment(self) -> int:
        """When there may be something to do again."""
        moments = [self.now + LOOK]
        for one in self.credentials:
            action = next_action(one, self.now)
            if isinstance(action, Wait) and action.until:
                moments.append(action.until)
        step = plan(self.now, self.credentials, self.policy, self.hints())
        if isinstance(step, Keep) and step.until:
            moments.append(step.until)
        return min(moments)

    def hints(self) -> Hints:
        moments = {}
        for one in self.credentials:
            if isinstance(one.state, Active):
                certificate = one.state.certificate
                window = self.issuers[certificate.issuer].suggests(certificate, self.now)
                if window is not None:
                    moments[one.id] = renewal_moment(window, one.id.encode())
        return Hints(renew_at=moments)

    def save(self, one: Credential, outcome: Outcome) -> Credential:
        """What the store keeps after an outcome, all at once."""
        after = advance(one, outcome, self.now)
        changed = {after.id: after}
        life = self.lives[one.id]
        life.tries += isinstance(outcome, do.Deferred | do.Abandoned)
        if isinstance(after.state, Active):
            former = active_of(self.credentials)
            if former is not None and isinstance(former.state, Active):
                certificate = former.state.certificate
                life.left = (certificate.not_after - self.now) / (
                    certificate.not_after - certificate.not_before
                )
            others = retire_others(
                after, self.credentials, self.now + holding_time(self.policy, FRESH), self.now
            )
            changed |= {other.id: other for other in others}
            life.active, life.issuer = self.now, after.state.certificate.issuer
            self.begun_to_sign = True
        if isinstance(after.state, Failed):
            life.failed = after.state.reason
        self.credentials = [changed.get(each.id, each) for each in self.credentials]
        self.must_hold()
        if isinstance(after.state, Destroyed):
            life.destroyed = self.now
            self.credentials = [each for each in self.credentials if each.id != after.id]
        return after

    # The counterparts

    def perform(self, one: Credential, action: do.Action) -> Outcome:
        match action, one.state:
            case do.GenerateKey(), New():
                self.hsm.add(one.key_id)
                self.most_keys = max(self.most_keys, len(self.hsm))
                return do.KeyMade(BirthRecord(one.key_id, "", self.now, b"", {}, "", "", ""))
            case do.PlaceOrder(), Keyed():
                return self.order(one)
            case do.Authorize(), Ordered(issuer=name):
                return self.asked(one, name, "challenge") or do.OrderReady()
            case do.Finalize(), Authorized(issuer=name):
                return self.asked(one, name, "order") or do.CsrTaken()
            case do.Collect(), Finalizing(issuer=name):
                return self.asked(one, name, "certificate") or do.ChainAccepted(
                    self.issuers[name].certificate(name, self.now)
                )
            case do.Publish(), Issued():
                self.public.add(one.id)
                return do.ChainPublic(f"https://cr.example/{one.id}.pem")
            case do.Activate(), Published(certificate=certificate):
                if certificate.not_after <= self.now:
                    return do.Ended("EXPIRED", "It has expired.", self.now, "Begin anew.")
                if one.key_id not in self.hsm:  # destroyed, not recorded, and then recalled
                    return do.Deferred("HSM_KEY_ABSENT", "The canary cannot be signed.")
                self.epoch += 1
                return do.Switched(self.epoch)
            case do.Try(), Published():
                return do.Passed()
            case do.DestroyKey(), state:
                fresh = isinstance(state, Retired) and self.now < state.since + FRESH
                assert not fresh, "a key was destroyed whose last PASSporT is fresh"
                self.hsm.discard(one.key_id)
                return do.KeyGone()
            case _:
                raise AssertionError(f"{action} in {one.state}")

    def order(self, one: Credential) -> Outcome:
        healths = self.healths.values()
        match choose(list(self.issuers), healths, self.now, avoid=one.abandoned[-1:]):
            case Later(until):
                return do.Deferred("ISSUERS_BUSY", "All are left alone.", "", until - self.now)
            case Ask(name):
                return self.asked(one, name, "order") or do.OrderPlaced(name, f"https://{name}/1")

    def asked(self, one: Credential, name: str, resource: str) -> Outcome | None:
        """What comes of asking an STI-CA that is in trouble; None: it is not."""
        error = self.trouble(name, resource)
        if error is None:
            self.healths = {k: h for k, h in self.healths.items() if h.issuer != name}
            return None
        health = after_failure(self.healths.values(), name, "acme", error, self.now)
        if health is not None:
            active = active_of(self.credentials)
            longest = patience(self.now, active) if active else DAY
            health = replace(health, until=min(health.until, self.now + longest))
            self.healths[name, health.profile] = health
        if all_refuse(self.issuers, self.healths.values(), self.now):
            at = self.now + holding_time(self.policy, FRESH)
            return do.Ended(error.reason, error.message, at)
        if isinstance(one.state, Keyed):
            return do.Deferred(error.reason, error.message)
        other = choose(list(self.issuers), self.healths.values(), self.now, avoid=[name])
        if isinstance(other, Ask) and other.issuer != name:
            return do.Abandoned(name, error.reason, error.message)
        return do.Deferred(error.reason, error.message)

    def trouble(self, name: str, resource: str) -> KmsdError | None:
        at = self.now - START
        for begin, end, error in self.issuers[name].troubles:
            if begin <= at < end:
                return error(resource)
        return None

    # What is always so

    def find(self, id: str) -> Credential:
        return next(one for one in self.credentials if one.id == id)

    def pass_time(self, until: int) -> None:
        """The clock goes on; the seconds are counted in which nothing could be signed."""
        if self.begun_to_sign:
            one = active_of(self.credentials)
            good = self.now
            if one is not None and isinstance(one.state, Active):
                good = min(until, max(self.now, one.state.certificate.not_after))
            self.unsigned += until - good
        self.now = until

    def must_hold(self) -> None:
        """Whatever the outcomes, after every single step."""
        active = [one for one in self.credentials if isinstance(one.state, Active)]
        assert len(active) <= 1, "two are active"
        for one in active:
            assert one.id in self.public, "what is active is not public"
            assert one.key_id in self.hsm, "what is active has no key"
            assert not one.rehearsal, "a rehearsal is active"
        wanted = [one for one in self.credentials if not one.rehearsal]
        assert sum(isinstance(one.state, ON_THE_WAY) for one in wanted) <= 1, "two are on the way"
        keyless = (New, Destroyed)
        known = {one.key_id for one in self.credentials if not isinstance(one.state, keyless)}
        begun = {one.key_id for one in self.credentials if isinstance(one.state, New)}
        assert self.hsm - begun <= known, "a key is nobody's"
