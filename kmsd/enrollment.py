"""The enrollment machine: what a credential needs next, and what an outcome makes of it.

Pure: `next_action` looks at a credential and says what to do, somebody outside does it,
`advance` turns the outcome into the next credential. The keeper persists that before it asks
again, so that a crash repeats at most one action, and every action can be repeated.
`PATH` is the whole machine as data. DESIGN section 5; RFC 8555 section 7.4 for the order.
"""

from collections.abc import Iterable
from typing import Final, assert_never

from msgspec.structs import replace

from kmsd.model import (
    Active,
    Authorized,
    BirthRecord,
    Certificate,
    Credential,
    Destroyed,
    Doomed,
    Failed,
    Finalizing,
    Issued,
    Keyed,
    New,
    Ordered,
    Published,
    Rehearsed,
    Retired,
    State,
    Trouble,
    Value,
)

DAY: Final = 86_400
LONGEST_BACKOFF: Final = 600
REMEMBERED: Final = 16
"""Orders given up that a credential remembers."""


class GenerateKey(Value, tag="generate_key", frozen=True):
    """Make the key pair `key_id` in the HSM, or find it there."""


class PlaceOrder(Value, tag="place_order", frozen=True):
    """Fetch and check an SPC token, then make an order at the STI-CA."""


class Authorize(Value, tag="authorize", frozen=True):
    """Answer the tkauth-01 challenge with the SPC token and wait until the order is ready."""


class Finalize(Value, tag="finalize", frozen=True):
    """Send the CSR."""


class Collect(Value, tag="collect", frozen=True):
    """Download the chain and put it through the acceptance gate."""


class Publish(Value, tag="publish", frozen=True):
    """Put the chain at its own URL and fetch it back byte-identical."""


class Activate(Value, tag="activate", frozen=True):
    """Sign and verify a canary through the x5u, then switch every signer to the credential."""


class Try(Value, tag="try", frozen=True):
    """A rehearsal's last step: the canary through the x5u, and no switch."""


class DestroyKey(Value, tag="destroy_key", frozen=True):
    """Remove the key pair from the HSM, for good."""


class Wait(Value, tag="wait", frozen=True):
    """Nothing to do before `until` (0: nothing at all unless something happens)."""

    until: int = 0


Action = (
    GenerateKey
    | PlaceOrder
    | Authorize
    | Finalize
    | Collect
    | Publish
    | Activate
    | Try
    | DestroyKey
    | Wait
)


class KeyMade(Value, frozen=True):
    birth: BirthRecord


class OrderPlaced(Value, frozen=True):
    issuer: str
    order_url: str


class OrderReady(Value, frozen=True):
    pass


class CsrTaken(Value, frozen=True):
    pass


class ChainAccepted(Value, frozen=True):
    certificate: Certificate


class ChainPublic(Value, frozen=True):
    x5u: str


class Switched(Value, frozen=True):
    """Every live signer acknowledged `epoch`."""

    epoch: int


class Passed(Value, frozen=True):
    """The canary of a rehearsal verified."""


class Superseded(Value, frozen=True):
    """Another credential of the profile became active; destroy the key at `destroy_at`."""

    destroy_at: int


class Recalled(Value, frozen=True):
    """A person wants the retired credential back; canary and switch come as ever."""


class DestroyAsked(Value, frozen=True):
    destroy_at: int


class RestoreAsked(Value, frozen=True):
    pass


class KeyGone(Value, frozen=True):
    pass


class Deferred(Value, frozen=True):
    """It did not work this time; try again, not before `retry_after` seconds have passed."""

    reason: str
    message: str
    next_step: str = ""
    retry_after: int = 0
    problem: str = ""


class Abandoned(Value, frozen=True):
    """The order at `issuer` is given up, and another STI-CA is asked for a certificate for the
    same key; not before `retry_after` seconds have passed."""

    issuer: str
    reason: str
    message: str
    next_step: str = ""
    retry_after: int = 0
    problem: str = ""


class Ended(Value, frozen=True):
    """It will not work: a person must look. The key is destroyed at `destroy_at`."""

    reason: str
    message: str
    destroy_at: int
    next_step: str = ""
    problem: str = ""
    artefact: str = ""


Outcome = (
    KeyMade
    | OrderPlaced
    | OrderReady
    | CsrTaken
    | ChainAccepted
    | ChainPublic
    | Switched
    | Passed
    | Superseded
    | Recalled
    | DestroyAsked
    | RestoreAsked
    | KeyGone
    | Deferred
    | Abandoned
    | Ended
)

PATH: Final[tuple[tuple[type[State], type[Action], type[Outcome], type[State]], ...]] = (
    (New, GenerateKey, KeyMade, Keyed),
    (Keyed, PlaceOrder, OrderPlaced, Ordered),
    (Ordered, Authorize, OrderReady, Authorized),
    (Authorized, Finalize, CsrTaken, Finalizing),
    (Finalizing, Collect, ChainAccepted, Issued),
    (Issued, Publish, ChainPublic, Published),
    (Published, Activate, Switched, Active),
    (Active, Wait, Superseded, Retired),
    (Ordered, Authorize, Abandoned, Keyed),
    (Authorized, Finalize, Abandoned, Keyed),
    (Finalizing, Collect, Abandoned, Keyed),
    (Published, Try, Passed, Rehearsed),
    (Retired, Wait, Recalled, Published),
    (Retired, Wait, DestroyAsked, Doomed),
    (Failed, Wait, DestroyAsked, Doomed),
    (Retired, DestroyKey, KeyGone, Destroyed),
    (Rehearsed, DestroyKey, KeyGone, Destroyed),
    (Failed, DestroyKey, KeyGone, Destroyed),
    (Doomed, DestroyKey, KeyGone, Destroyed),
)
"""Every step: in this state, this action, with this outcome, leads to that state.

Besides: Deferred keeps any state, Ended leads from anything before Active to Failed, and
RestoreAsked from Doomed back to what it was. Published is tried where the credential is a
rehearsal, and activated where it is none.
"""

ON_THE_WAY = (New, Keyed, Ordered, Authorized, Finalizing, Issued, Published)
"""The states before Active: the credential moves by itself."""


class WrongOutcome(Exception):
    """An outcome that the state cannot have; a defect in the caller, not an event."""


def next_action(credential: Credential, now: int) -> Action:
    """What the credential needs at `now` (seconds UTC)."""
    trouble = credential.trouble
    # Before `at`, the clock was set back: there is no telling how long has been waited.
    if trouble is not None and trouble.at <= now < trouble.retry_at:
        return Wait(until=trouble.retry_at)
    match credential.state:
        case New():
            return GenerateKey()
        case Keyed():
            return PlaceOrder()
        case Ordered():
            return Authorize()
        case Authorized():
            return Finalize()
        case Finalizing():
            return Collect()
        case Issued():
            return Publish()
        case Published():
            return Try() if credential.rehearsal else Activate()
        case Rehearsed():
            return DestroyKey()
        case Failed(birth=None) | Active() | Destroyed():
            return Wait()
        case Failed() | Retired() | Doomed() if _is_to_be_revoked(credential):
            return Wait()  # its own key may have to sign for that
        case Failed(destroy_at=at) | Retired(destroy_at=at) | Doomed(destroy_at=at):
            return DestroyKey() if now >= at else Wait(until=at)
        case _:
            assert_never(credential.state)


def advance(credential: Credential, outcome: Outcome, now: int) -> Credential:
    """The credential after `outcome` at `now`. Raises WrongOutcome."""
    match outcome:
        case Deferred():
            return replace(credential, trouble=_trouble(credential.trouble, outcome, now))
        case Ended():
            if not isinstance(credential.state, ON_THE_WAY):
                raise WrongOutcome(f"Ended in {type(credential.state).__name__}")
            return replace(credential, state=_failed(credential, outcome, now), trouble=None)
        case Abandoned():
            return _abandoned(credential, outcome, now)
        case _:
            return replace(credential, state=_after(credential, outcome, now), trouble=None)


def may_be_recalled(credential: Credential, now: int) -> bool:
    """Whether a rollback to it is possible: retired, its key there, its certificate good."""
    match credential.state:
        case Retired(certificate=certificate, destroy_at=destroy_at):
            trusted = credential.revocation is None and credential.condemned is None
            return trusted and now < min(certificate.not_after, destroy_at)
        case _:
            return False


def retire_others(
    active: Credential, profile: Iterable[Credential], destroy_at: int, now: int
) -> list[Credential]:
    """The profile's other active credentials, retired by the one that has become active.

    To be stored together with it: never two active after a step.
    """
    return [
        advance(one, Superseded(destroy_at), now)
        for one in profile
        if isinstance(one.state, Active) and one.id != active.id
    ]


def birth_of(state: State) -> BirthRecord | None:
    """The birth record a state knows, or None before the key exists."""
    return None if isinstance(state, New) else state.birth


def certificate_of(state: State) -> Certificate | None:
    """The accepted chain a state knows, or None."""
    match state:
        case Issued() | Published() | Active() | Retired() | Rehearsed() | Destroyed():
            return state.certificate
        case Doomed():
            return certificate_of(state.was)
        case _:
            return None


def x5u_of(state: State) -> str:
    """The public URL a state knows, or an empty text."""
    match state:
        case Published() | Active() | Retired() | Rehearsed() | Destroyed():
            return state.x5u
        case Doomed():
            return x5u_of(state.was)
        case _:
            return ""


def _is_to_be_revoked(credential: Credential) -> bool:
    return credential.condemned is not None and credential.revocation is None


def _after(credential: Credential, outcome: Outcome, now: int) -> State:
    match credential.state, outcome:
        case New(), KeyMade(birth):
            return Keyed(birth)
        case Keyed(birth), OrderPlaced(issuer, order_url):
            return Ordered(birth, issuer, order_url)
        case Ordered(birth, issuer, order_url), OrderReady():
            return Authorized(birth, issuer, order_url)
        case Authorized(birth, issuer, order_url), CsrTaken():
            return Finalizing(birth, issuer, order_url)
        case Finalizing(birth), ChainAccepted(certificate):
            return Issued(birth, certificate)
        case Issued(birth, certificate), ChainPublic(x5u):
            return Published(birth, certificate, x5u)
        case Published(birth, certificate, x5u), Passed() if credential.rehearsal:
            return Rehearsed(birth, certificate, x5u, at=now)
        case Published(birth, certificate, x5u, recalled), Switched(epoch) if (
            not credential.rehearsal
        ):
            return Active(birth, certificate, x5u, since=now, epoch=epoch, recalled=recalled)
        case Active(birth, certificate, x5u), Superseded(destroy_at):
            return Retired(birth, certificate, x5u, since=now, destroy_at=destroy_at)
        case Retired(birth, certificate, x5u), Recalled() if may_be_recalled(credential, now):
            return Published(birth, certificate, x5u, recalled=True)
        case ((Retired(birth=BirthRecord() as birth) as was), DestroyAsked(destroy_at)):
            return Doomed(was, birth, since=now, destroy_at=destroy_at)
        case ((Failed(birth=BirthRecord() as birth) as was), DestroyAsked(destroy_at)):
            return Doomed(was, birth, since=now, destroy_at=destroy_at)
        case Doomed(was), RestoreAsked():
            return replace(was, destroy_at=max(was.destroy_at, now + 7 * DAY))
        case (Retired() | Rehearsed() | Failed() | Doomed()) as state, KeyGone():
            return Destroyed(
                credential.key_id, now, birth_of(state), certificate_of(state), x5u_of(state)
            )
        case _:
            raise WrongOutcome(f"{type(outcome).__name__} in {type(credential.state).__name__}")


def _failed(credential: Credential, ended: Ended, now: int) -> Failed:
    state = credential.state
    return Failed(
        step=type(state).__name__.lower(),
        at=now,
        reason=ended.reason,
        message=ended.message,
        next_step=ended.next_step,
        problem=ended.problem,
        artefact=ended.artefact,
        birth=birth_of(state),
        destroy_at=now if credential.rehearsal else ended.destroy_at,
    )


def _abandoned(credential: Credential, outcome: Abandoned, now: int) -> Credential:
    """Keyed again. The next STI-CA is asked at once the first time, and later the more orders
    were given up: two STI-CAs that fail in turns are not asked in turns without a pause."""
    state = credential.state
    if not isinstance(state, Ordered | Authorized | Finalizing):
        raise WrongOutcome(f"Abandoned in {type(state).__name__}")
    given_up = (*credential.abandoned, outcome.issuer)[-REMEMBERED:]
    pause = max(outcome.retry_after, min(2 ** len(given_up) - 2, LONGEST_BACKOFF))
    trouble = Trouble(
        reason=outcome.reason,
        message=outcome.message,
        since=credential.trouble.since if credential.trouble else now,
        attempts=len(given_up),
        retry_at=now + pause,
        next_step=outcome.next_step,
        problem=outcome.problem,
        at=now,
    )
    return replace(credential, state=Keyed(state.birth), trouble=trouble, abandoned=given_up)


def _trouble(before: Trouble | None, deferred: Deferred, now: int) -> Trouble:
    attempts = before.attempts + 1 if before else 1
    pause = max(deferred.retry_after, min(2**attempts, LONGEST_BACKOFF))
    return Trouble(
        reason=deferred.reason,
        message=deferred.message,
        since=before.since if before else now,
        attempts=attempts,
        retry_at=now + pause,
        next_step=deferred.next_step,
        problem=deferred.problem,
        at=now,
    )
