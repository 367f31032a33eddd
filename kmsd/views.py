"""The keeper's facts as kmsapi.v1 messages: what operators are shown.

Status is derived here from what is stored and seen, each time it is asked for; nothing is kept
twice. Every state of a credential says what comes next and what it waits for.
"""

from collections.abc import Iterable

from kmsapi.v1 import admin_pb2 as pb

from kmsd import jose, settings
from kmsd.enrollment import ON_THE_WAY, birth_of, certificate_of, x5u_of
from kmsd.errors import KmsdError
from kmsd.explain import Explanation
from kmsd.forecast import Planned
from kmsd.model import (
    Account,
    Active,
    Authorized,
    BirthRecord,
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
)
from kmsd.presence import Seen
from kmsd.rotation import renewal_time

NEXT = {
    New: "make the key in the HSM",
    Keyed: "get an SPC token and place an order",
    Ordered: "answer the STI-CA's challenge with the SPC token",
    Authorized: "send the CSR",
    Finalizing: "collect the chain and check it",
    Issued: "publish the chain and fetch it back",
    Published: "sign and verify a canary, then switch every signer",
}
WAITS_FOR = {
    New: "the HSM",
    Keyed: "the STI-PA and the STI-CA",
    Ordered: "the STI-CA's validation",
    Authorized: "the STI-CA",
    Finalizing: "the STI-CA's issuance",
    Issued: "the STI-CR",
    Published: "every signer's acknowledgement",
}
DONE = {
    New: "Intent stored; the key's CKA_ID is chosen",
    Keyed: "Key pair made in the HSM and read back",
    Ordered: "SPC token checked, order placed at {issuer}",
    Authorized: "{issuer} accepted the SPC token",
    Finalizing: "CSR signed in the HSM and sent to {issuer}",
    Issued: "Chain collected and accepted by every rule",
    Published: "Chain public at {x5u}, fetched back byte-identical",
    Active: "Canary verified; every signer switched to epoch {epoch}",
    Retired: "Retired",
    Rehearsed: "Canary verified: the rehearsal went through, and nothing was switched",
    Failed: "Failed when it was {step}: {message}",
    Doomed: "Destruction scheduled",
    Destroyed: "Key destroyed",
}


CONDEMNED = {False: " when the profile signs with another credential", True: " now"}
"""When a condemned credential is revoked."""


def state_name(credential: Credential) -> str:
    """The state as the API names it."""
    return type(credential.state).__name__.lower()


def done(credential: Credential) -> str:
    """What was reached, in one line for a person."""
    state = credential.state
    certificate = certificate_of(state)
    issuer = certificate.issuer if certificate else ""
    if credential.revocation is not None and not isinstance(state, Destroyed):
        return f"{issuer} revoked the certificate"
    if credential.condemned is not None and credential.revocation is None:
        return f"Condemned: {issuer} is to revoke it{CONDEMNED[credential.condemned.at_once]}"
    facts = {
        "issuer": getattr(state, "issuer", ""),
        "x5u": x5u_of(state),
        "epoch": state.epoch if isinstance(state, Active) else 0,
        "step": state.step if isinstance(state, Failed) else "",
        "message": state.message if isinstance(state, Failed) else "",
    }
    return DONE[type(state)].format(**facts)


def credential_message(credential: Credential, *, full: bool = False) -> pb.Credential:
    """A credential; full: with its chain and birth record."""
    state = credential.state
    message = pb.Credential(
        id=credential.id,
        profile=credential.profile,
        spc=credential.spc,
        state=state_name(credential),
        key_id=credential.key_id,
        created_at=credential.created,
        x5u=x5u_of(state),
        issuer=getattr(state, "issuer", ""),
        rehearsal=credential.rehearsal,
    )
    certificate = certificate_of(state)
    if certificate is not None:
        message.issuer = certificate.issuer
        message.serial = certificate.serial
        message.not_before = certificate.not_before
        message.not_after = certificate.not_after
        message.spki_sha256 = certificate.spki_sha256
        message.chain = certificate.chain if full else ""
    match state:
        case Active():
            message.epoch = state.epoch
        case Retired() | Doomed():
            message.destroy_at = state.destroy_at
        case Failed():
            message.trouble_reason = state.reason
            message.trouble = state.message
            message.next_step = state.next_step
            message.problem = state.problem
            message.artefact = state.artefact
            message.destroy_at = state.destroy_at if state.birth else 0
        case _:
            pass
    if credential.trouble is not None:
        message.trouble_reason = credential.trouble.reason
        message.trouble = credential.trouble.message
        message.next_step = credential.trouble.next_step
        message.problem = credential.trouble.problem
        message.retry_at = credential.trouble.retry_at
    if credential.revocation is not None:
        message.revoked_at = credential.revocation.at
        message.revocation_reason = credential.revocation.reason
    elif credential.condemned is not None:
        message.condemned_at = credential.condemned.at
        message.revocation_reason = credential.condemned.reason
    birth = birth_of(state)
    if full and birth is not None:
        message.birth.CopyFrom(_birth(birth))
    return message


def profile_message(
    name: str, profile: settings.Profile, credentials: Iterable[Credential]
) -> pb.Profile:
    """A profile, what it signs with, what happens next. credentials: its own, newest first."""
    message = pb.Profile(
        name=name, spc=profile.spc, authority=profile.authority, issuers=profile.issuers
    )
    mine = list(credentials)
    active = next((c for c in mine if isinstance(c.state, Active)), None)
    on_the_way = (c for c in mine if isinstance(c.state, ON_THE_WAY) and not c.rehearsal)
    coming = next(on_the_way, None)
    if active is not None:
        message.active.CopyFrom(credential_message(active))
        message.next_step = "renew"
        message.next_step_at, _ = renewal_time(active, profile.policy)
        message.waits_for = f"{profile.policy.renew_at:.0%} of the certificate's lifetime"
    if coming is not None:
        message.coming.CopyFrom(credential_message(coming))
        message.next_step = NEXT[type(coming.state)]
        message.waits_for = WAITS_FOR[type(coming.state)]
        message.next_step_at = coming.trouble.retry_at if coming.trouble else 0
    elif active is None:
        message.next_step = "enroll"
        message.waits_for = f"a person: kmsctl enroll {name}"
    return message


def explanation_message(explained: Explanation) -> pb.Explanation:
    return pb.Explanation(
        credential=explained.credential,
        state=explained.state,
        why=explained.why,
        needs=explained.needs,
        who=explained.who.value,
        command=explained.command,
        since=explained.since,
        next_at=explained.next_at,
    )


def planned_message(planned: Planned) -> pb.Planned:
    return pb.Planned(
        at=planned.at,
        profile=planned.profile,
        credential=planned.credential,
        what=planned.what.value,
        why=planned.why,
    )


def account_message(account: Account) -> pb.Account:
    key = account.birth.public_key if account.birth else b""
    return pb.Account(
        profile=account.profile,
        issuer=account.issuer,
        url=account.url,
        key_id=account.key_id,
        thumbprint=jose.b64url(jose.thumbprint(key)) if key else "",
    )


def revocation_alarm(credential: Credential, error: KmsdError) -> pb.Alarm:
    """A condemned certificate that is not revoked yet: it goes on being asked for."""
    return pb.Alarm(
        reason=error.reason,
        subject=credential.profile,
        message=f"Credential {credential.id} is condemned and not revoked yet. {error.message}",
        next_step=error.next_step,
        since=credential.condemned.at if credential.condemned else 0,
    )


def signer_message(seen: Seen) -> pb.SignerStatus:
    """A signer process as it acknowledged last."""
    said = seen.acknowledgement
    return pb.SignerStatus(
        index=said.index,
        alive=seen.alive,
        pid=said.pid,
        epoch=max(0, said.epoch),
        acknowledged_at=said.at,
        profiles=said.profiles,
    )


def _birth(birth: BirthRecord) -> pb.BirthRecord:
    return pb.BirthRecord(
        label=birth.label,
        made_at=birth.made_at,
        public_key=birth.public_key,
        attributes=birth.attributes,
        module=birth.module,
        token=birth.token,
        serial=birth.serial,
    )
