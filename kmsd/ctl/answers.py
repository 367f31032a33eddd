"""What the keeper answers (kmsapi.v1 messages), as the documents kmsctl shows and prints.

Reading only: no call is made here. In the messages 0 and "" mean "none"; here that is None.
"""

import hashlib
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from kmsapi.v1 import admin_pb2 as pb

from kmsd.ctl.output import (
    REVOCATION_CODES,
    Account,
    AccountsDocument,
    Alarm,
    Birth,
    Certificate,
    Condition,
    Credential,
    CredentialDocument,
    Explanation,
    ExplanationDocument,
    ForgottenDocument,
    Hsm,
    PlanDocument,
    Planned,
    Profile,
    ProgressDocument,
    Revocation,
    Signer,
    StatusDocument,
    Trouble,
    TrustMaterial,
)


def status(answer: pb.Status, keeper: str) -> StatusDocument:
    """keeper: the address that answered, to be shown."""
    return StatusDocument(
        condition=condition(answer),
        keeper=keeper,
        standing_by=answer.standing_by,
        version=answer.version,
        now=datetime.fromtimestamp(answer.now, UTC),
        started_at=moment(answer.started_at),
        epoch=answer.epoch,
        hsm=Hsm(
            usable=answer.hsm.usable,
            token=answer.hsm.token,
            serial=answer.hsm.serial,
            module=answer.hsm.module,
            keys=answer.hsm.keys,
            foreign_objects=answer.hsm.foreign_objects,
            trouble=answer.hsm.trouble,
        ),
        signers=tuple(map(_signer, answer.signers)),
        trust=tuple(map(_trust, answer.trust)),
        profiles=tuple(map(profile, answer.profiles)),
        alarms=tuple(map(_alarm, answer.alarms)),
    )


def condition(answer: pb.Status) -> Condition:
    """NEEDS_PERSON: an alarm names a step only a person can take. DEGRADED: another alarm, or
    no use of the HSM, no signers, or one that is down or behind the keyring. Else OK."""
    if any(alarm.next_step for alarm in answer.alarms):
        return Condition.NEEDS_PERSON
    signing = [signer.alive and signer.epoch == answer.epoch for signer in answer.signers]
    if answer.alarms or not answer.hsm.usable or not signing or not all(signing):
        return Condition.DEGRADED
    return Condition.OK


def profile(answer: pb.Profile) -> Profile:
    return Profile(
        name=answer.name,
        spc=answer.spc,
        authority=answer.authority,
        issuers=tuple(answer.issuers),
        active=credential(answer.active) if answer.HasField("active") else None,
        coming=credential(answer.coming) if answer.HasField("coming") else None,
        next_step=answer.next_step,
        next_step_at=moment(answer.next_step_at),
        waits_for=answer.waits_for,
    )


def credential(answer: pb.Credential) -> Credential:
    return Credential(
        id=answer.id,
        profile=answer.profile,
        spc=answer.spc,
        state=answer.state,
        key_id=answer.key_id,
        created_at=moment(answer.created_at),
        issuer=answer.issuer,
        serial=answer.serial,
        not_before=moment(answer.not_before),
        not_after=moment(answer.not_after),
        x5u=answer.x5u,
        spki_sha256=answer.spki_sha256,
        epoch=answer.epoch or None,
        destroy_at=moment(answer.destroy_at),
        trouble=_trouble(answer),
        revocation=_revocation(answer.revoked_at, answer.revocation_reason),
        condemned=_revocation(answer.condemned_at, answer.revocation_reason),
        rehearsal=answer.rehearsal,
    )


def detailed(answer: pb.Credential) -> CredentialDocument:
    """A credential with its chain, taken apart, and its birth record."""
    return CredentialDocument(
        credential=credential(answer),
        chain_pem=answer.chain,
        certificates=certificates(answer.chain),
        birth=_birth(answer.birth) if answer.HasField("birth") else None,
    )


def progress(answer: pb.Progress) -> ProgressDocument:
    return ProgressDocument(
        at=datetime.fromtimestamp(answer.at, UTC),
        message=answer.message,
        reason=answer.reason,
        done=answer.done,
        credential=credential(answer.credential),
    )


def explanations(answer: pb.Explanations) -> ExplanationDocument:
    return ExplanationDocument(
        profile=answer.profile,
        explanations=tuple(
            Explanation(
                credential=one.credential,
                state=one.state,
                why=one.why,
                needs=one.needs,
                who=one.who,
                command=one.command,
                since=moment(one.since),
                next_at=moment(one.next_at),
            )
            for one in answer.explanations
        ),
    )


def plan(answer: pb.Calendar) -> PlanDocument:
    return PlanDocument(
        now=datetime.fromtimestamp(answer.now, UTC),
        days=answer.days,
        entries=tuple(
            Planned(
                at=datetime.fromtimestamp(one.at, UTC),
                profile=one.profile,
                credential=one.credential,
                what=one.what,
                why=one.why,
            )
            for one in answer.entries
        ),
        cut=answer.cut,
    )


def accounts(answer: pb.Accounts) -> AccountsDocument:
    return AccountsDocument(
        accounts=tuple(
            Account(
                profile=one.profile,
                issuer=one.issuer,
                url=one.url,
                key_id=one.key_id,
                thumbprint=one.thumbprint,
            )
            for one in answer.accounts
        )
    )


def forgotten(answer: pb.ForgottenTrust) -> ForgottenDocument:
    return ForgottenDocument(before=_trust(answer.before), after=_trust(answer.after))


def certificates(chain: str) -> tuple[Certificate, ...]:
    """The certificates of a PEM chain in its order; () when there is none or it is unreadable
    (the chain itself is shown in any case)."""
    try:
        return tuple(map(_certificate, x509.load_pem_x509_certificates(chain.encode())))
    except ValueError:
        return ()


def moment(seconds: int) -> datetime | None:
    """Seconds since 1970-01-01 UTC as a time; 0 is none."""
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _signer(answer: pb.SignerStatus) -> Signer:
    return Signer(
        index=answer.index,
        alive=answer.alive,
        pid=answer.pid,
        epoch=answer.epoch,
        acknowledged_at=moment(answer.acknowledged_at),
        profiles=answer.profiles,
    )


def _trust(answer: pb.TrustStatus) -> TrustMaterial:
    return TrustMaterial(
        authority=answer.authority,
        sequence=answer.sequence,
        roots=answer.roots,
        list_fetched_at=moment(answer.list_fetched_at),
        list_expires_at=moment(answer.list_expires_at),
        crl_number=answer.crl_number,
        crl_fetched_at=moment(answer.crl_fetched_at),
        crl_next_update=moment(answer.crl_next_update),
        trouble=answer.trouble,
    )


def _alarm(answer: pb.Alarm) -> Alarm:
    return Alarm(
        reason=answer.reason,
        message=answer.message,
        next_step=answer.next_step,
        subject=answer.subject,
        since=moment(answer.since),
    )


def _trouble(answer: pb.Credential) -> Trouble | None:
    if not answer.trouble_reason and not answer.trouble:
        return None
    return Trouble(
        reason=answer.trouble_reason,
        message=answer.trouble,
        next_step=answer.next_step,
        problem=answer.problem,
        artefact=answer.artefact,
        retry_at=moment(answer.retry_at),
    )


def _revocation(seconds: int, code: int) -> Revocation | None:
    at = moment(seconds)
    if at is None:
        return None
    names = {code: name for name, code in REVOCATION_CODES.items()}
    return Revocation(at=at, reason=names[code].value if code in names else str(code))


def _birth(answer: pb.BirthRecord) -> Birth:
    return Birth(
        label=answer.label,
        made_at=moment(answer.made_at),
        public_key=answer.public_key,
        public_key_sha256=hashlib.sha256(answer.public_key).hexdigest(),
        attributes=dict(sorted(answer.attributes.items())),
        module=answer.module,
        token=answer.token,
        serial=answer.serial,
    )


def _certificate(certificate: x509.Certificate) -> Certificate:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Certificate(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        spki_sha256=hashlib.sha256(spki).hexdigest(),
    )
