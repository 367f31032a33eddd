"""The pure core under anything that may happen, in any order: a state machine against itself.

Outcomes good and bad, clocks that leap ahead or back, keepers that die between a step and its
record, people who roll back, rehearse, revoke, destroy and restore. Whatever it was: when it is
over, the profile signs with a credential that is public, or what failed can be read.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from kmsd import enrollment as do
from kmsd.enrollment import ON_THE_WAY, Action, Outcome, Wait, may_be_recalled, next_action
from kmsd.explain import explain
from kmsd.forecast import forecast
from kmsd.model import (
    Active,
    Authorized,
    Condemned,
    Credential,
    Doomed,
    Failed,
    Finalizing,
    Ordered,
    Retired,
    Revocation,
)
from kmsd.rotation import Hints, active_of, holding_time
from kmsd.settings import Policy
from tests.unit.leap import DAY, FRESH, HOUR, Issuer, World

LIFETIMES = (HOUR, DAY, 7 * DAY, 90 * DAY, 3 * 365 * DAY)
POLICIES = (
    Policy(),
    Policy(hold_key_days=0, jitter=0, floor=0.3),
    Policy(hold_key_days=3, windows=("Mon-Fri 08:00-16:00",)),
    Policy(windows=("Sun 03:00-03:30",), renew_at=0.9),
)
SETTLED = 4 * DAY
"""In this time without trouble everything comes to rest: no pause is longer."""
SHOWN = 3
"""Credentials that are explained after every step, the newest."""


class Anything(RuleBasedStateMachine):
    """One profile, one keeper, and no luck."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Policy(), {"first": Issuer(7 * DAY), "second": Issuer(DAY)})
        self.enrolled = False

    # What it is about

    @precondition(lambda self: not self.enrolled)
    @rule(policy=st.sampled_from(POLICIES), lifetimes=st.tuples(*[st.sampled_from(LIFETIMES)] * 2))
    def set_up(self, policy: Policy, lifetimes: tuple[int, int]) -> None:
        first, second = lifetimes
        self.world = World(policy, {"first": Issuer(first), "second": Issuer(second)})
        self.world.enroll()
        self.enrolled = True

    # The keeper, and what comes of its steps

    @precondition(lambda self: self.enrolled)
    @rule()
    def all_goes_well(self) -> None:
        self.world.tick()

    @precondition(lambda self: self.enrolled)
    @rule(data=st.data())
    def a_step_is_taken_and_its_record_lost(self, data: st.DataObject) -> None:
        """The keeper dies between doing and storing: the step is taken again."""
        for one, action in self.waiting():
            if data.draw(st.booleans()):
                self.world.perform(one, action)

    @precondition(lambda self: self.enrolled)
    @rule(data=st.data(), later=st.sampled_from((0, 1, 30, HOUR, 2 * DAY)))
    def a_step_does_not_succeed(self, data: st.DataObject, later: int) -> None:
        for one, _ in self.waiting():
            outcomes: list[Outcome] = [do.Deferred("TIMEOUT", "It broke.", "", later)]
            if isinstance(one.state, Ordered | Authorized | Finalizing):
                issuer = one.state.issuer
                outcomes.append(do.Abandoned(issuer, "REFUSED", "It said no.", "", later))
            if isinstance(one.state, ON_THE_WAY):
                at = self.world.now + holding_time(self.world.policy, FRESH)
                outcomes.append(do.Ended("HOPELESS", "It never will.", at, "Look at it."))
            self.world.save(one, data.draw(st.sampled_from(outcomes)))

    # Time

    @precondition(lambda self: self.enrolled)
    @rule(seconds=st.sampled_from((1, 60, HOUR, DAY, 30 * DAY, 400 * DAY)))
    def nobody_is_there_for_a_while(self, seconds: int) -> None:
        self.world.now += seconds

    @precondition(lambda self: self.enrolled)
    @rule(seconds=st.integers(-DAY, DAY))
    def the_clock_is_set(self, seconds: int) -> None:
        self.world.now += seconds

    @precondition(lambda self: self.enrolled)
    @rule(hours=st.integers(1, 8))
    def some_hours_go_by(self, hours: int) -> None:
        self.world.run(self.world.now + hours * HOUR)

    # People

    @precondition(lambda self: self.enrolled)
    @rule(rehearsal=st.booleans())
    def somebody_wants_a_new_one(self, rehearsal: bool) -> None:
        going = [one for one in self.world.credentials if isinstance(one.state, ON_THE_WAY)]
        if rehearsal or not [one for one in going if not one.rehearsal]:
            self.world.enroll("ASKED", rehearsal=rehearsal)

    @precondition(lambda self: self.enrolled)
    @rule()
    def somebody_rolls_back(self) -> None:
        going = [one for one in self.world.credentials if isinstance(one.state, ON_THE_WAY)]
        for one in self.world.credentials:
            there = one.key_id in self.world.hsm  # asked before anything is changed
            if may_be_recalled(one, self.world.now) and there and not going:
                self.world.save(one, do.Recalled())
                return

    @precondition(lambda self: self.enrolled)
    @rule(data=st.data(), days=st.integers(0, 7))
    def somebody_destroys_or_restores(self, data: st.DataObject, days: int) -> None:
        for one in self.world.credentials:
            if isinstance(one.state, Doomed) and self.world.now < one.state.destroy_at:
                self.world.save(one, do.RestoreAsked())
                return
            keyed = isinstance(one.state, Retired | Failed) and one.state.birth is not None
            if keyed and data.draw(st.booleans()):
                at = self.world.now + max(days * DAY, FRESH)
                self.world.save(one, do.DestroyAsked(at))
                return

    @precondition(lambda self: self.enrolled)
    @rule(taken=st.booleans())
    def somebody_revokes(self, taken: bool) -> None:
        active = active_of(self.world.credentials)
        if active is not None:
            now = self.world.now
            revoked = replace(active, revocation=Revocation(now, 4))
            condemned = replace(active, condemned=Condemned(now, 1))
            self.put(revoked if taken else condemned)

    # What must be so

    @invariant()
    def it_holds(self) -> None:
        self.world.must_hold()

    @invariant()
    def every_credential_can_be_explained(self) -> None:
        world = self.world
        for one in world.credentials[-SHOWN:]:
            said = explain(one, world.credentials, world.policy, Hints(), world.now)
            assert said.why
            assert said.needs

    @invariant()
    def the_calendar_can_be_made(self) -> None:
        profile = (self.world.credentials, self.world.policy, Hints())
        entries = forecast(self.world.now, 400, {"acme": profile}, limit=5)
        assert [one.at for one in entries] == sorted(one.at for one in entries)
        assert all(one.at >= self.world.now for one in entries)

    def teardown(self) -> None:
        """All is well again: it comes to rest."""
        if not self.enrolled:
            return
        self.world.run(self.world.now + SETTLED)
        active = active_of(self.world.credentials)
        if active is None:
            failed = [one.state for one in self.world.credentials if isinstance(one.state, Failed)]
            lives = self.world.lives.values()
            assert not self.world.begun_to_sign
            assert failed or any(life.failed for life in lives)
            assert all(one.reason and one.message and one.next_step for one in failed)
        else:
            assert isinstance(active.state, Active)
            assert active.id in self.world.public
            assert active.state.certificate.not_after > self.world.now
            assert active.revocation is None
            assert active.condemned is None

    # What the keeper would see

    def waiting(self) -> list[tuple[Credential, Action]]:
        """What has something to do now."""
        steps = [(one, next_action(one, self.world.now)) for one in self.world.credentials]
        return [(one, action) for one, action in steps if not isinstance(action, Wait)]

    def put(self, one: Credential) -> None:
        mine = self.world.credentials
        self.world.credentials = [one if each.id == one.id else each for each in mine]


TestAnything: Any = Anything.TestCase
TestAnything.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
