"""What operators are shown of every state, and what they are alarmed about."""

import pytest
from kmsapi.v1 import admin_pb2 as pb
from msgspec.structs import replace

from kmsd import settings, views
from kmsd.alarms import alarms
from kmsd.enrollment import DAY, ON_THE_WAY
from kmsd.failures import FailureClass
from kmsd.issuers import Health
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
    Revocation,
    State,
    Trouble,
)
from kmsd.presence import NOT_SERVING, Acknowledgement, Seen
from kmsd.standing import NOT_TRUSTED, REVOKED, Distrusted

NOW = 1_800_000_000
BIRTH = BirthRecord("6b" * 16, "label", 5, b"spki", {"CKA_SENSITIVE": True}, "mod", "tok", "0001")
CERTIFICATE = Certificate(
    "PEM", "ca1", "https://ca/o/1", "0a", "cd" * 32, NOW - 60 * DAY, NOW + 30 * DAY
)
X5U = "https://cr.example.org/1.pem"
RETIRED = Retired(BIRTH, CERTIFICATE, X5U, since=7, destroy_at=9)
FAILED = Failed(
    "finalizing",
    7,
    "GATE_SPC",
    "The chain is for SPC 9999.",
    "Call.",
    "no",
    "/a.pem",
    BIRTH,
    9,
)
STATES: dict[str, tuple[State, str]] = {
    "new": (New(), "Intent stored; the key's CKA_ID is chosen"),
    "keyed": (Keyed(BIRTH), "Key pair made in the HSM and read back"),
    "ordered": (Ordered(BIRTH, "ca1", "u"), "SPC token checked, order placed at ca1"),
    "authorized": (Authorized(BIRTH, "ca1", "u"), "ca1 accepted the SPC token"),
    "finalizing": (Finalizing(BIRTH, "ca1", "u"), "CSR signed in the HSM and sent to ca1"),
    "issued": (Issued(BIRTH, CERTIFICATE), "Chain collected and accepted by every rule"),
    "published": (
        Published(BIRTH, CERTIFICATE, X5U),
        f"Chain public at {X5U}, fetched back byte-identical",
    ),
    "active": (
        Active(BIRTH, CERTIFICATE, X5U, since=7, epoch=4),
        "Canary verified; every signer switched to epoch 4",
    ),
    "retired": (RETIRED, "Retired"),
    "rehearsed": (
        Rehearsed(BIRTH, CERTIFICATE, X5U, at=7),
        "Canary verified: the rehearsal went through, and nothing was switched",
    ),
    "failed": (FAILED, "Failed when it was finalizing: The chain is for SPC 9999."),
    "doomed": (Doomed(RETIRED, BIRTH, since=8, destroy_at=9), "Destruction scheduled"),
    "destroyed": (Destroyed("6b" * 16, 9, BIRTH, CERTIFICATE, X5U), "Key destroyed"),
}
PROFILE = settings.Profile(spc="1234", authority="pa", issuers=("ca1", "ca2"))


def credential(state: str, trouble: Trouble | None = None) -> Credential:
    return Credential("00" * 8, "acme", "1234", "6b" * 16, 5, STATES[state][0], trouble=trouble)


def test_every_state_there_is_is_shown() -> None:
    assert {type(state) for state, _ in STATES.values()} == set(State.__args__)
    assert set(views.NEXT) == set(views.WAITS_FOR) == set(ON_THE_WAY)


@pytest.mark.parametrize("name", STATES)
def test_a_state_has_its_name_and_its_sentence(name: str) -> None:
    one = credential(name)
    assert views.state_name(one) == name
    assert views.done(one) == STATES[name][1]
    message = views.credential_message(one)
    assert (message.id, message.state, message.profile) == ("00" * 8, name, "acme")


@pytest.mark.parametrize(
    "name", ["issued", "published", "active", "retired", "doomed", "destroyed"]
)
def test_what_has_a_certificate_shows_it_and_the_chain_only_in_full(name: str) -> None:
    short = views.credential_message(credential(name))
    assert (short.issuer, short.serial, short.spki_sha256) == ("ca1", "0a", "cd" * 32)
    assert (short.not_before, short.not_after) == (CERTIFICATE.not_before, CERTIFICATE.not_after)
    assert short.chain == ""
    assert not short.HasField("birth")
    full = views.credential_message(credential(name), full=True)
    assert full.chain == "PEM"
    assert full.birth.public_key == b"spki"
    assert dict(full.birth.attributes) == {"CKA_SENSITIVE": True}


def test_a_failure_says_all_that_is_known() -> None:
    message = views.credential_message(credential("failed"))
    assert (message.trouble_reason, message.trouble) == ("GATE_SPC", "The chain is for SPC 9999.")
    assert (message.next_step, message.problem, message.artefact) == ("Call.", "no", "/a.pem")
    assert message.destroy_at == 9


def test_a_failure_without_a_key_destroys_nothing() -> None:
    one = replace(credential("failed"), state=replace(FAILED, birth=None))
    assert views.credential_message(one).destroy_at == 0


def test_trouble_and_revocation_are_shown_beside_the_state() -> None:
    trouble = Trouble("ACME_DOWN", "It is down.", 5, 3, NOW + 60, "Wait.")
    one = replace(credential("active", trouble), revocation=Revocation(NOW, 1))
    message = views.credential_message(one)
    assert (message.trouble_reason, message.trouble) == ("ACME_DOWN", "It is down.")
    assert (message.next_step, message.retry_at) == ("Wait.", NOW + 60)
    assert (message.revoked_at, message.revocation_reason, message.epoch) == (NOW, 1, 4)


@pytest.mark.parametrize("name", [name for name, (s, _) in STATES.items() if type(s) in ON_THE_WAY])
def test_a_profile_on_its_way_says_what_comes_and_what_it_waits_for(name: str) -> None:
    message = views.profile_message("acme", PROFILE, [credential(name), credential("active")])
    assert message.coming.state == name
    assert message.active.state == "active"
    assert message.next_step == views.NEXT[type(STATES[name][0])]
    assert message.waits_for == views.WAITS_FOR[type(STATES[name][0])]


def test_a_profile_at_rest_says_when_it_renews() -> None:
    profile = replace(PROFILE, policy=settings.Policy(jitter=0))
    message = views.profile_message("acme", profile, [credential("retired"), credential("active")])
    assert not message.HasField("coming")
    assert message.next_step == "renew"
    assert message.next_step_at == CERTIFICATE.not_before + int(90 * DAY * 0.66)
    assert list(message.issuers) == ["ca1", "ca2"]


@pytest.mark.parametrize("name", ["retired", "failed", "doomed", "destroyed"])
def test_a_profile_that_cannot_sign_waits_for_a_person(name: str) -> None:
    message = views.profile_message("acme", PROFILE, [credential(name)])
    assert not message.HasField("active")
    assert (message.next_step, message.waits_for) == ("enroll", "a person: kmsctl enroll acme")


# Alarms.


def signer(index: int = 1, *, alive: bool = True, epoch: int = 4, trouble: str = "") -> Seen:
    return Seen(Acknowledgement(index, 7, epoch, NOW - 5, NOW - 50, 1, trouble), alive)


def status(*profiles: pb.Profile, now: int = NOW, **more: object) -> pb.Status:
    hsm = pb.HsmStatus(usable=True, token="kmsd")
    return pb.Status(now=now, hsm=hsm, epoch=4, profiles=profiles, **more)  # type: ignore[arg-type]


def profile(*credentials: Credential) -> pb.Profile:
    return views.profile_message("acme", PROFILE, credentials)


def raised(status: pb.Status, *signers: Seen) -> list[tuple[str, str]]:
    return [(one.reason, one.subject) for one in alarms(status, signers or (signer(),))]


def test_all_well_is_no_alarm() -> None:
    assert raised(status(profile(credential("active")))) == []


def test_a_signer_as_the_operator_must_know_it() -> None:
    found = raised(
        status(),
        signer(1, alive=False),
        signer(2, trouble="The HSM is gone."),
        signer(3, epoch=3),
        signer(4),
        signer(5, epoch=NOT_SERVING, trouble="It is starting."),
    )
    assert found == [
        ("SIGNER_DOWN", "signer 1"),
        ("SIGNER_TROUBLE", "signer 2"),
        ("SIGNER_BEHIND", "signer 3"),
        ("SIGNER_TROUBLE", "signer 5"),
    ]


def test_a_host_without_signers_signs_nothing() -> None:
    (alarm,) = alarms(status(), ())
    assert alarm.reason == "SIGNER_NONE"
    assert alarm.next_step


def test_an_hsm_that_cannot_be_used_comes_first() -> None:
    broken = status()
    broken.hsm.usable = False
    broken.hsm.trouble = "The PIN is wrong."
    first, *_ = alarms(broken, (signer(alive=False),))
    assert (first.reason, first.message) == ("HSM_NOT_USABLE", "The PIN is wrong.")


def test_a_profile_that_never_was_enrolled_needs_a_person() -> None:
    (alarm,) = alarms(status(profile()), (signer(),))
    assert (alarm.reason, alarm.next_step) == ("PROFILE_NOT_ACTIVE", "kmsctl enroll acme")


def test_a_first_enrollment_under_way_is_no_alarm() -> None:
    assert raised(status(profile(credential("ordered")))) == []


LAST_PART = CERTIFICATE.not_after - 15 * DAY
"""A sixth of 90 days."""


@pytest.mark.parametrize(
    ("now", "reasons"),
    [
        (LAST_PART - 1, []),
        (LAST_PART, ["CREDENTIAL_EXPIRES"]),
        (CERTIFICATE.not_after - 1, ["CREDENTIAL_EXPIRES"]),
        (CERTIFICATE.not_after, ["CREDENTIAL_EXPIRED"]),
    ],
)
def test_an_expiry_is_alarmed_weeks_before(now: int, reasons: list[str]) -> None:
    at_rest = profile(credential("active"))
    stuck = profile(credential("ordered"), credential("active"))
    for one in (at_rest, stuck):
        assert [reason for reason, _ in raised(status(one, now=now))] == reasons


def test_a_renewal_that_is_not_due_yet_is_not_late() -> None:
    late_renewal = replace(PROFILE, policy=settings.Policy(renew_at=0.95))
    one = views.profile_message("acme", late_renewal, [credential("active")])
    assert raised(status(one, now=LAST_PART + 1)) == []
    assert raised(status(one, now=CERTIFICATE.not_after - DAY)) == [("CREDENTIAL_EXPIRES", "acme")]


def test_a_stuck_renewal_is_alarmed_in_its_own_words() -> None:
    trouble = Trouble("ACME_DOWN", "It is down.", 5, 3, NOW + 60, "Wait.")
    stuck = profile(credential("ordered", trouble), credential("active"))
    (alarm,) = alarms(status(stuck), (signer(),))
    assert (alarm.reason, alarm.message, alarm.next_step) == ("ACME_DOWN", "It is down.", "Wait.")
    assert raised(status(stuck, now=LAST_PART)) == [
        ("ACME_DOWN", "acme"),
        ("CREDENTIAL_EXPIRES", "acme"),
    ]


@pytest.mark.parametrize(
    ("facts", "reasons"),
    [
        ({"trouble": "It is down."}, ["TRUST_REFRESH_FAILED"]),
        ({"list_expires_at": NOW}, ["TRUST_LIST_EXPIRED"]),
        ({"list_expires_at": NOW + 1, "crl_next_update": NOW}, ["TRUST_CRL_EXPIRED"]),
        (
            {"trouble": "It is down.", "list_expires_at": NOW - 1, "crl_next_update": NOW - 1},
            ["TRUST_REFRESH_FAILED", "TRUST_LIST_EXPIRED", "TRUST_CRL_EXPIRED"],
        ),
        ({}, []),
    ],
)
def test_trust_that_ends_is_alarmed(facts: dict[str, object], reasons: list[str]) -> None:
    trust = pb.TrustStatus(authority="pa", **facts)  # type: ignore[arg-type]
    assert [reason for reason, _ in raised(status(trust=[trust]))] == reasons


# STI-CAs and what the STI-PA says.

REFUSED = Health("ca", 2, FailureClass.REFUSED, NOW + 9, "acme", "ACME_CAA", "No.", NOW - 7)


def of_issuers(*healths: Health, profiles: tuple[pb.Profile, ...] = ()) -> list[pb.Alarm]:
    return list(alarms(status(*profiles), (signer(),), healths=healths))


def test_an_sti_ca_that_is_left_alone_is_told_once_however_many_profiles_it_refused() -> None:
    others = [replace(REFUSED, profile=f"p{number}", since=NOW - 9) for number in range(5)]
    (alarm,) = of_issuers(REFUSED, *others)
    assert (alarm.reason, alarm.subject, alarm.since) == ("ISSUER_IN_BACK_OFF", "ca", NOW - 9)
    assert "(acme, p0, p1, ...): No." in alarm.message
    assert alarm.next_step


def test_an_sti_ca_that_does_not_answer_needs_nobody() -> None:
    down = Health("ca", 1, FailureClass.UNREACHABLE, NOW + 9, "", "ACME_DOWN", "It is down.", NOW)
    (alarm,) = of_issuers(down)
    assert alarm.message == "STI-CA ca is left alone for a while: It is down."
    assert not alarm.next_step


def test_an_sti_ca_whose_time_is_over_is_no_alarm() -> None:
    assert of_issuers(replace(REFUSED, until=NOW)) == []


def test_what_a_profile_waits_for_is_told_by_the_profile_alone() -> None:
    waits = profile(credential("keyed", Trouble("ACME_CAA", "No.", 5, 3, NOW + 60)))
    assert [one.subject for one in of_issuers(REFUSED, profiles=(waits,))] == ["acme"]


def test_a_certificate_from_another_sti_ca_than_the_first_is_told() -> None:
    message = profile(credential("active"))
    message.issuers[:] = ["better", *message.issuers]
    message.active.issuer = message.issuers[1]
    assert raised(status(message)) == [("ISSUER_FAILED_OVER", "acme")]


@pytest.mark.parametrize("reason", [REVOKED, NOT_TRUSTED])
def test_a_credential_that_the_sti_pa_disowns_is_told_while_it_signs(reason: str) -> None:
    active = credential("active")
    one = Distrusted(active.id, "acme", "ca", reason, "It is on the CRL.", NOW - 3)
    (alarm,) = alarms(status(profile(active)), (signer(),), distrusted=[one])
    assert (alarm.reason, alarm.subject, alarm.since) == (reason, "acme", NOW - 3)
    assert alarm.message.startswith("It is on the CRL. ")
    assert active.id in alarm.next_step
    gone = replace(one, credential="f" * 16)
    assert list(alarms(status(profile(active)), (signer(),), distrusted=[gone])) == []
