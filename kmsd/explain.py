"""Why a credential is in its state, what must be true next, and who can see to it.

Pure: a reading of what is stored, made each time somebody asks. `rotation` says what will be
begun and `enrollment` what is done; nothing is decided here.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import assert_never

from kmsd.enrollment import may_be_recalled
from kmsd.issuers import Health
from kmsd.model import (
    Active,
    Authorized,
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
    Trouble,
    Value,
)
from kmsd.rotation import (
    Expect,
    Hints,
    Keep,
    active_of,
    condemned_for,
    plan,
)
from kmsd.settings import Policy


class Who(StrEnum):
    """Who must do something before a credential gets further."""

    KMSD = "kmsd"
    """It goes on by itself."""
    OPERATOR = "operator"
    HSM = "hsm"
    STI_PA = "sti-pa"
    STI_CA = "sti-ca"
    STI_CR = "sti-cr"
    SIGNERS = "signers"
    NOBODY = "nobody"
    """Nothing comes any more."""


class Explanation(Value, frozen=True):
    """state: as the API names it. why, needs: a sentence each, for people. who: of Who.

    command: what an operator can type now, empty: nothing helps. since: when the state began;
    next_at: when something is done next; seconds UTC, 0: not known, nothing.
    """

    credential: str
    state: str
    why: str
    needs: str
    who: Who
    command: str = ""
    since: int = 0
    next_at: int = 0


OnItsWay = New | Keyed | Ordered | Authorized | Finalizing | Issued | Published

RENEWALS = {
    "ARI": "Its STI-CA suggests that time for the renewal.",
    "FRACTION": "It is renewed when that part of its lifetime is over.",
    "FLOOR": "It is renewed then at the latest, whatever stands against it.",
    "WINDOW": "Its renewal waits for a maintenance window.",
    "RETRY": "Its renewal failed and is tried again.",
    "RECALLED": "Somebody went back to it: it is not renewed by itself before that time.",
    "CONDEMNED": "It is renewed at once: nobody may go on trusting it.",
}
"""A sentence for each `why` of a plan."""


def explain(
    credential: Credential,
    profile: Iterable[Credential],
    policy: Policy,
    hints: Hints,
    now: int,
    healths: Iterable[Health] = (),
) -> Explanation:
    """The explanation of `credential`; profile: all credentials of its profile.

    healths: how the profile's STI-CAs fared; those that are in back-off are named.
    """
    others = tuple(profile)
    match credential.state:
        case Active():
            return _active(credential, others, policy, hints, now)
        case Failed() as failed:
            return _failed(credential, failed, others, policy, hints, now)
        case Retired() as retired:
            return _retired(credential, retired, now)
        case Doomed(since=since, destroy_at=destroy_at):
            return _of(
                credential,
                "Somebody asked for the destruction of its key.",
                "The key is destroyed for good at that time, unless it is restored before.",
                command=f"kmsctl restore {credential.id}" if now < destroy_at else "",
                since=since,
                next_at=destroy_at,
            )
        case Destroyed(at=at):
            why = "Its key is gone from the HSM; the record stays."
            return _of(credential, why, "Nothing more comes.", who=Who.NOBODY, since=at)
        case Rehearsed(at=at):
            why = "The rehearsal went through, up to the switch, which it leaves out."
            needs = "Its key is destroyed at once: nothing is ever signed with it."
            return _of(credential, why, needs, who=_whose(credential, Who.KMSD), since=at)
        case (
            New()
            | Keyed()
            | Ordered()
            | Authorized()
            | Finalizing()
            | Issued()
            | Published() as state
        ):
            return _on_its_way(credential, state, now, healths)
        case _:
            assert_never(credential.state)


def _active(
    credential: Credential,
    profile: tuple[Credential, ...],
    policy: Policy,
    hints: Hints,
    now: int,
) -> Explanation:
    assert isinstance(credential.state, Active)  # noqa: S101  matched by the caller
    certificate = credential.state.certificate
    why = f"Its profile signs with it, under epoch {credential.state.epoch}."
    if certificate.not_after <= now:
        why = "Its certificate has expired: who verifies refuses what it signs."
    elif reason := condemned_for(credential, hints):
        why = f"Its profile signs with it, although {_CONDEMNED.get(reason, reason)}."
    since = credential.state.since
    step = plan(now, profile, policy, hints)
    if isinstance(step, Expect):
        coming = next(one for one in profile if one.id == step.credential)
        return _of(
            credential,
            why,
            f"Its successor {coming.id} is on its way ({_name(coming)}).",
            who=_whose(coming, Who.KMSD),
            command=f"kmsctl explain {coming.id}",
            since=since,
            next_at=coming.trouble.retry_at if coming.trouble else now,
        )
    next_at = step.until if isinstance(step, Keep) else now
    needs = RENEWALS.get(step.why, step.why)
    who = Who.KMSD
    if step.why == "RETRY":
        lost = max((one.state for one in profile if isinstance(one.state, Failed)), key=_at)
        needs = f"{needs} The last time: {lost.message}"
        who = _blamed(lost.reason, Who.OPERATOR)
    command = f"kmsctl rotate {credential.profile}"
    return _of(credential, why, needs, who=who, command=command, since=since, next_at=next_at)


def _failed(
    credential: Credential,
    failed: Failed,
    profile: tuple[Credential, ...],
    policy: Policy,
    hints: Hints,
    now: int,
) -> Explanation:
    name = credential.profile
    step = plan(now, profile, policy, hints)
    command = f"kmsctl rotate {name}" if active_of(profile) else f"kmsctl enroll {name}"
    if credential.rehearsal:
        command = f"kmsctl rotate {name} --rehearse"
        after = "A rehearsal is not repeated by itself."
    elif isinstance(step, Expect):
        command = f"kmsctl explain {step.credential}"
        after = f"Another attempt, {step.credential}, is on its way."
    elif active_of(profile):
        after = "The profile goes on with the credential it has, and another attempt is made."
    else:
        after = "The profile cannot sign, and no attempt is made until a person asks for one."
    return _of(
        credential,
        f"It failed when it was {failed.step}: {failed.message}",
        f"{failed.next_step} {after}".strip(),
        who=_blamed(failed.reason, Who.OPERATOR),
        command=command,
        since=failed.at,
        next_at=step.until if isinstance(step, Keep) and not credential.rehearsal else 0,
    )


def _retired(credential: Credential, retired: Retired, now: int) -> Explanation:
    why = "Another credential of its profile took its place; its chain stays public."
    if credential.revocation is not None:
        why = "Its certificate was revoked: nothing is signed with it any more."
    may = may_be_recalled(credential, now)
    return _of(
        credential,
        why,
        "Its key is destroyed when its holding time is over."
        if credential.trouble is None
        else f"Its key could not be destroyed: {credential.trouble.message}",
        who=_whose(credential, Who.KMSD),
        command=f"kmsctl rollback {credential.profile}" if may else "",
        since=retired.since,
        next_at=credential.trouble.retry_at if credential.trouble else retired.destroy_at,
    )


def _on_its_way(
    credential: Credential, state: OnItsWay, now: int, healths: Iterable[Health]
) -> Explanation:
    why, needs, who, since = _waits(credential, state)
    trouble = credential.trouble
    if trouble is None:
        return _of(credential, why, needs, who=Who.KMSD, since=since, next_at=now)
    reasons = [why, trouble.message, _attempts(trouble)]
    if isinstance(state, Keyed):
        reasons += [
            f"{health.issuer} is left alone for {_duration(health.until - now)}: {health.message}"
            for health in healths
            if now < health.until
        ]
    return _of(
        credential,
        " ".join(reasons),
        trouble.next_step or needs,
        who=_blamed(trouble.reason, who),
        command=f"kmsctl rotate {credential.profile}",  # who asks again is answered at once
        since=trouble.since,
        next_at=trouble.retry_at,
    )


def _waits(credential: Credential, state: OnItsWay) -> tuple[str, str, Who, int]:
    """Why it is there, what it needs, of whom, and since when, if nothing went wrong."""
    match state:
        case New():
            why, needs, who = "It was just begun.", "The HSM makes its key.", Who.HSM
            return why, needs, who, credential.created
        case Keyed(birth=birth):
            why = "Its key is in the HSM, and no STI-CA has an order for it."
            needs = "The STI-PA gives an SPC token, and an STI-CA takes an order."
            return why, needs, Who.STI_CA, birth.made_at
        case Ordered(issuer=issuer):
            why = f"{issuer} has an order for it."
            return why, f"{issuer} accepts the SPC token.", Who.STI_CA, 0
        case Authorized(issuer=issuer):
            why = f"{issuer} accepted the SPC token."
            return why, f"{issuer} takes the CSR.", Who.STI_CA, 0
        case Finalizing(issuer=issuer):
            why = f"{issuer} has the CSR."
            return why, f"{issuer} issues a chain that every rule accepts.", Who.STI_CA, 0
        case Issued(certificate=certificate):
            why = f"{certificate.issuer} issued its chain, and every rule accepted it."
            needs = "The chain is public and comes back byte-identical from its URL."
            return why, needs, Who.STI_CR, 0
        case Published():
            why = "Its chain is public."
            needs = "A canary is signed and verified through its URL, then every signer switches."
            if credential.rehearsal:
                needs = "A canary is signed and verified through its URL; nothing is switched."
            return why, needs, Who.SIGNERS, 0
        case _:
            assert_never(state)


def _of(
    credential: Credential,
    why: str,
    needs: str,
    *,
    who: Who = Who.KMSD,
    command: str = "",
    since: int = 0,
    next_at: int = 0,
) -> Explanation:
    state = _name(credential)
    return Explanation(credential.id, state, why, needs, who, command, since, next_at)


_CONDEMNED = {
    "CREDENTIAL_REVOKED": "its certificate is revoked",
    "ISSUER_NOT_TRUSTED": "its STI-CA left the STI-PA's list",
    "REVOCATION_ASKED": "somebody asked for its revocation",
}

_BLAMED = (
    ("SPC_TOKEN_FILE", Who.OPERATOR),
    (("STI_PA_", "SPC_TOKEN_", "TRUST_", "CRL_"), Who.STI_PA),
    (("ACME_", "CHAIN_NOT_ACCEPTED", "GATE_"), Who.STI_CA),
    ("HSM_", Who.HSM),
    (("X5U_", "REPOSITORY_"), Who.STI_CR),
    ("SIGNER_", Who.SIGNERS),
    (("KEYRING_", "STORE_", "SECRET_", "INTERNAL", "GIVEN_UP"), Who.OPERATOR),
)
"""Beginnings of reasons, and whose they are; the first that fits."""


def _blamed(reason: str, otherwise: Who) -> Who:
    return next((who for begins, who in _BLAMED if reason.startswith(begins)), otherwise)


def _whose(credential: Credential, otherwise: Who) -> Who:
    """Who must do something about its trouble, if it has any."""
    if credential.trouble is None:
        return otherwise
    return _blamed(credential.trouble.reason, otherwise)


def _name(credential: Credential) -> str:
    return type(credential.state).__name__.lower()


def _at(failed: Failed) -> int:
    return failed.at


def _attempts(trouble: Trouble) -> str:
    return "It was tried once." if trouble.attempts == 1 else f"Tried {trouble.attempts} times."


def _duration(seconds: int) -> str:
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
