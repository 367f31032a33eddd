"""What a person must know, derived from the status each time it is asked for.

An alarm with a next step needs a person; one without heals by itself.
"""

from collections.abc import Iterable, Iterator, Sequence

from kmsapi.v1 import admin_pb2 as pb

from kmsd.errors import KmsdError
from kmsd.issuers import NO, Health
from kmsd.presence import Seen
from kmsd.standing import Distrusted


def alarms(
    status: pb.Status,
    signers: Sequence[Seen],
    store: KmsdError | None = None,
    *,
    healths: Iterable[Health] = (),
    distrusted: Iterable[Distrusted] = (),
) -> Iterator[pb.Alarm]:
    """The alarms of a status, worst first as far as one can tell.

    store: why nothing can be changed, where that is not as it should be. healths: how STI-CAs
    fared. distrusted: credentials that the STI-PA disowns.
    """
    if store is not None:
        yield _alarm(store.reason, "store", store.message, store.next_step)
    if not status.hsm.usable:
        yield _alarm("HSM_NOT_USABLE", "hsm", status.hsm.trouble, "Run `kmsd check` here.")
    if not signers:
        text = "No signer has ever run on this host: nothing is signed."
        yield _alarm("SIGNER_NONE", "signers", text, "systemctl start kmsd-signer@1")
    for signer in signers:
        yield from _signer(signer, status.epoch)
    for one in distrusted:
        yield from _distrusted(one, status)
    told = []
    for profile in status.profiles:
        for alarm in _profile(profile, status.now):
            told.append(alarm.reason)
            yield alarm
    yield from _issuers([one for one in healths if one.reason not in told], status.now)
    for trust in status.trust:
        if trust.trouble:
            yield _alarm("TRUST_REFRESH_FAILED", trust.authority, trust.trouble)
        if trust.list_expires_at and trust.list_expires_at <= status.now:
            yield _alarm(
                "TRUST_LIST_EXPIRED",
                trust.authority,
                f"The list of trusted STI-CAs of {trust.authority} has expired.",
                since=trust.list_expires_at,
            )
        if trust.crl_next_update and trust.crl_next_update <= status.now:
            yield _alarm(
                "TRUST_CRL_EXPIRED",
                trust.authority,
                f"The CRL of {trust.authority} has expired.",
                since=trust.crl_next_update,
            )


def _signer(one: Seen, epoch: int) -> Iterator[pb.Alarm]:
    said = one.acknowledgement
    subject = f"signer {said.index}"
    if not one.alive:
        yield _alarm(
            "SIGNER_DOWN",
            subject,
            f"Signer {said.index} does not run.",
            f"systemctl restart kmsd-signer@{said.index}",
            said.at,
        )
    elif said.trouble:
        yield _alarm("SIGNER_TROUBLE", subject, said.trouble, "Run `kmsd check` here.", said.at)
    elif said.epoch < epoch:
        text = f"Signer {said.index} signs under epoch {said.epoch}, not {epoch}."
        yield _alarm("SIGNER_BEHIND", subject, text, since=said.at)


def _profile(profile: pb.Profile, now: int) -> Iterator[pb.Alarm]:
    name, active, coming = profile.name, profile.active, profile.coming
    if profile.HasField("coming") and coming.trouble_reason:
        yield _alarm(coming.trouble_reason, name, coming.trouble, coming.next_step)
    if profile.HasField("active") and active.issuer in profile.issuers[1:]:
        yield _alarm(
            "ISSUER_FAILED_OVER",
            name,
            f"The certificate of {name} is from {active.issuer}: {profile.issuers[0]} did not "
            "issue one. It is asked again for the next one.",
        )
    if not profile.HasField("active"):
        if not profile.HasField("coming"):
            yield _alarm(
                "PROFILE_NOT_ACTIVE",
                name,
                f"Profile {name} cannot sign: it has no active credential.",
                f"kmsctl enroll {name}",
            )
    elif active.not_after <= now:
        yield _alarm(
            "CREDENTIAL_EXPIRED",
            name,
            f"The certificate of {name} has expired: its calls are not signed.",
            f"kmsctl rotate {name}",
            active.not_after,
        )
    elif _late(profile, now):
        yield _alarm(
            "CREDENTIAL_EXPIRES",
            name,
            f"The certificate of {name} should have been renewed and expires soon.",
            f"kmsctl credentials --profile {name}",
            active.not_after - _last_part(active),
        )


def _distrusted(one: Distrusted, status: pb.Status) -> Iterator[pb.Alarm]:
    if not any(each.active.id == one.credential for each in status.profiles):
        return  # it signs no more
    text = f"{one.message} Verifiers do not believe what {one.profile} signs."
    advice = f"Another credential is on its way by itself: kmsctl explain {one.credential}"
    yield _alarm(one.reason, one.profile, text, advice, one.at)


def _issuers(healths: Sequence[Health], now: int) -> Iterator[pb.Alarm]:
    """STI-CAs that are not asked for a while, and that no profile waits for: another one is."""
    kinds = dict.fromkeys((health.issuer, health.klass) for health in healths if health.until > now)
    for issuer, klass in kinds:
        same = [h for h in healths if (h.issuer, h.klass) == (issuer, klass) and h.until > now]
        profiles = sorted({health.profile for health in same} - {""})
        whose = f" ({', '.join(profiles[:3])}{', ...' if len(profiles) > 3 else ''})"
        yield _alarm(
            "ISSUER_IN_BACK_OFF",
            issuer,
            f"STI-CA {issuer} is left alone for a while{whose if profiles else ''}: "
            f"{same[0].message}",
            "Show it to the STI-CA." if klass in NO else "",
            min(health.since for health in same),
        )


def _late(profile: pb.Profile, now: int) -> bool:
    """Whether the renewal is due, or fails, and the last part of the lifetime has begun."""
    due = profile.HasField("coming") or profile.next_step_at <= now
    return due and now >= profile.active.not_after - _last_part(profile.active)


def _last_part(active: pb.Credential) -> int:
    return (active.not_after - active.not_before) // 6


def _alarm(
    reason: str, subject: str, message: str, next_step: str = "", since: int = 0
) -> pb.Alarm:
    return pb.Alarm(
        reason=reason, subject=subject, message=message, next_step=next_step, since=since
    )
