"""The enrollment machine: what a credential needs next, and what an outcome makes of it.

Pure: `next_action` looks at a credential and says what to do, somebody outside does it,
`advance` turns the outcome into the next credential. The keeper persists that before it asks
again, so that a crash repeats at most one action, and every action can be repeated.
`PATH` is the whole machine as data. DESIGN section 5; RFC 8555 section 7.4 for the order.
"""

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
    Retired,
    State,
    Trouble,
    Value,
)

DAY: Final = 86_400
LONGEST_BACKOFF: Final = 600


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


class Superseded(Value, frozen=True):
    """Another credential of the profile became active; destroy the key at `destroy_at`."""

    destroy_at: int


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
    | Superseded
    | DestroyAsked
    | RestoreAsked
    | KeyGone
    | Deferred
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
    (Retired, Wait, DestroyAsked, Doomed),
    (Failed, Wait, DestroyAsked, Doomed),
    (Retired, DestroyKey, KeyGone, Destroyed),
    (Failed, DestroyKey, KeyGone, Destroyed),
    (Doomed, DestroyKey, KeyGone, Destroyed),
)
"""Every step: in this state, this action, with this outcome, leads to that state.

Besides: Deferred keeps any state, Ended leads from anything before Active to Failed, and
RestoreAsked from Doomed back to what it was.
"""

ON_THE_WAY = (New, Keyed, Ordered, Authorized, Finalizing, Issued, Published)
"""The states before Active: the credential moves by itself."""


class WrongOutcome(Exception):
    """An outcome that the state cannot have; a defect in the caller, not an event."""


def next_action(credential: Credential, now: int) -> Action:
    """What the credential needs at `now` (seconds UTC)."""
    if credential.trouble is not None and now < credential.trouble.retry_at:
        return Wait(until=credential.trouble.retry_at)
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
            return Activate()
        case Failed(birth=None) | Active() | Destroyed():
            return Wait()
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
            return replace(credential, state=_failed(credential.state, outcome, now), trouble=None)
        case _:
            return replace(credential, state=_after(credential, outcome, now), trouble=None)


def birth_of(state: State) -> BirthRecord | None:
    """The birth record a state knows, or None before the key exists."""
    return None if isinstance(state, New) else state.birth


def certificate_of(state: State) -> Certificate | None:
    """The accepted chain a state knows, or None."""
    match state:
        case Issued() | Published() | Active() | Retired() | Destroyed():
            return state.certificate
        case Doomed():
            return certificate_of(state.was)
        case _:
            return None


def x5u_of(state: State) -> str:
    """The public URL a state knows, or an empty text."""
    match state:
        case Published() | Active() | Retired() | Destroyed():
            return state.x5u
        case Doomed():
            return x5u_of(state.was)
        case _:
            return ""


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
        case Published(birth, certificate, x5u), Switched(epoch):
            return Active(birth, certificate, x5u, since=now, epoch=epoch)
        case Active(birth, certificate, x5u), Superseded(destroy_at):
            return Retired(birth, certificate, x5u, since=now, destroy_at=destroy_at)
        case ((Retired(birth=BirthRecord() as birth) as was), DestroyAsked(destroy_at)):
            return Doomed(was, birth, since=now, destroy_at=destroy_at)
        case ((Failed(birth=BirthRecord() as birth) as was), DestroyAsked(destroy_at)):
            return Doomed(was, birth, since=now, destroy_at=destroy_at)
        case Doomed(was), RestoreAsked():
            return replace(was, destroy_at=max(was.destroy_at, now + 7 * DAY))
        case (Retired() | Failed() | Doomed()) as state, KeyGone():
            return Destroyed(
                credential.key_id, now, birth_of(state), certificate_of(state), x5u_of(state)
            )
        case _:
            raise WrongOutcome(f"{type(outcome).__name__} in {type(credential.state).__name__}")


def _failed(state: State, ended: Ended, now: int) -> Failed:
    return Failed(
        step=type(state).__name__.lower(),
        at=now,
        reason=ended.reason,
        message=ended.message,
        next_step=ended.next_step,
        problem=ended.problem,
        artefact=ended.artefact,
        birth=birth_of(state),
        destroy_at=ended.destroy_at,
    )


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
    )
