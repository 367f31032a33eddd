"""Why a credential is in its state, what it needs, and who can see to it."""

from typing import get_args

import pytest
from msgspec.structs import replace

from kmsd.enrollment import ON_THE_WAY
from kmsd.explain import RENEWALS, Explanation, Who, explain
from kmsd.failures import FailureClass
from kmsd.issuers import Health
from kmsd.model import (
    Active,
    Authorized,
    BirthRecord,
    Certificate,
    Condemned,
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
from kmsd.rotation import NO_HINTS, Hints
from kmsd.settings import Policy

DAY, NOW = 86_400, 1_800_000_000
BIRTH = BirthRecord("ab" * 16, "label", NOW - 5, b"", {}, "m", "t", "s")
CERTIFICATE = Certificate("pem", "ca1", "", "01", "cd" * 32, NOW, NOW + 100 * DAY)
X5U = "https://cr.example/1.pem"
POLICY = Policy(renew_at=0.5, jitter=0)
RETIRED = Retired(BIRTH, CERTIFICATE, X5U, since=NOW - 9, destroy_at=NOW + DAY)
FAILED = Failed("ordered", NOW - 4, "ACME_ORDER_INVALID", "It said no.", "Call them.", birth=BIRTH)
STATES: tuple[State, ...] = (
    New(),
    Keyed(BIRTH),
    Ordered(BIRTH, "ca1", "u"),
    Authorized(BIRTH, "ca1", "u"),
    Finalizing(BIRTH, "ca1", "u"),
    Issued(BIRTH, CERTIFICATE),
    Published(BIRTH, CERTIFICATE, X5U),
    Active(BIRTH, CERTIFICATE, X5U, since=NOW, epoch=4),
    RETIRED,
    Rehearsed(BIRTH, CERTIFICATE, X5U, at=NOW - 3),
    FAILED,
    Doomed(RETIRED, BIRTH, since=NOW - 2, destroy_at=NOW + DAY),
    Destroyed("ab" * 16, NOW - 1, BIRTH, CERTIFICATE, X5U),
)


def credential(kind: type[State], id: str = "a", trouble: Trouble | None = None) -> Credential:
    state = next(state for state in STATES if isinstance(state, kind))
    return Credential(id * 16, "acme", "1234", "ab" * 16, NOW - 7, state, trouble=trouble)


def trouble(reason: str, next_step: str = "", attempts: int = 3) -> Trouble:
    return Trouble(reason, "It broke.", NOW - 60, attempts, NOW + 8, next_step, at=NOW)


def of(one: Credential, *others: Credential, hints: Hints = NO_HINTS) -> Explanation:
    return explain(one, [one, *others], POLICY, hints, NOW)


def test_every_state_there_is_is_explained() -> None:
    assert {type(state) for state in STATES} == set(get_args(State))
    for state in STATES:
        for found in (None, trouble("ACME_TIMEOUT")):
            said = of(credential(type(state), trouble=found))
            assert said.state == type(state).__name__.lower()
            assert said.why.endswith((".", ": nothing is signed with it any more."))
            assert said.needs.endswith(".")


@pytest.mark.parametrize("kind", ON_THE_WAY)
def test_what_is_on_its_way_without_trouble_goes_on_by_itself(kind: type[State]) -> None:
    said = of(credential(kind))
    assert (said.who, said.command, said.next_at) == (Who.KMSD, "", NOW)


@pytest.mark.parametrize(
    ("kind", "reason", "who"),
    [
        (New, "HSM_SILENT", Who.HSM),
        (Keyed, "STI_PA_TIMEOUT", Who.STI_PA),
        (Keyed, "SPC_TOKEN_FILE_MISSING", Who.OPERATOR),
        (Keyed, "ACME_RATE_LIMITED", Who.STI_CA),
        (Finalizing, "CHAIN_NOT_ACCEPTED", Who.STI_CA),
        (Finalizing, "TRUST_LIST_EXPIRED", Who.STI_PA),
        (Issued, "X5U_UNREACHABLE", Who.STI_CR),
        (Issued, "REPOSITORY_DISK_FULL", Who.STI_CR),
        (Published, "SIGNER_BEHIND", Who.SIGNERS),
        (Published, "KEYRING_NOT_WRITTEN", Who.OPERATOR),
        (Authorized, "SOMETHING_NEW", Who.STI_CA),
        (Rehearsed, "HSM_SILENT", Who.HSM),
    ],
)
def test_trouble_is_laid_at_the_right_door(kind: type[State], reason: str, who: Who) -> None:
    assert of(credential(kind, trouble=trouble(reason))).who is who


def test_trouble_says_what_happened_how_often_and_what_helps() -> None:
    said = of(credential(Issued, trouble=trouble("X5U_UNREACHABLE", "Start the web server.")))
    assert said == Explanation(
        "a" * 16,
        "issued",
        "ca1 issued its chain, and every rule accepted it. It broke. Tried 3 times.",
        "Start the web server.",
        Who.STI_CR,
        "kmsctl rotate acme",
        NOW - 60,
        NOW + 8,
    )
    once = of(credential(Issued, trouble=trouble("X5U_UNREACHABLE", attempts=1)))
    assert once.why.endswith("It was tried once.")
    assert once.needs == "The chain is public and comes back byte-identical from its URL."


def test_sti_cas_in_back_off_are_named() -> None:
    healths = [
        Health("ca1", 3, FailureClass.REFUSED, NOW + 3 * DAY, message="It said no."),
        Health("ca2", 1, FailureClass.UNREACHABLE, NOW + 7200, message="No answer."),
        Health("ca3", 1, FailureClass.UNREACHABLE, NOW + 150, message="Nothing."),
        Health("ca4", 1, FailureClass.UNREACHABLE, NOW + 5, message="Soon."),
        Health("ca5", 1, FailureClass.UNREACHABLE, NOW, message="Over."),
    ]
    one = credential(Keyed, trouble=trouble("ACME_TIMEOUT"))
    said = explain(one, [one], POLICY, NO_HINTS, NOW, healths)
    assert "ca1 is left alone for 3 days: It said no." in said.why
    assert "ca2 is left alone for 2 h: No answer." in said.why
    assert "ca3 is left alone for 2 min: Nothing." in said.why
    assert "ca4 is left alone for 5 s: Soon." in said.why
    assert "ca5" not in said.why


def test_an_active_credential_says_when_and_why_it_is_renewed() -> None:
    said = of(credential(Active))
    assert said.why == "Its profile signs with it, under epoch 4."
    assert said.needs == RENEWALS["FRACTION"]
    assert (said.who, said.command, said.next_at) == (
        Who.KMSD,
        "kmsctl rotate acme",
        NOW + 50 * DAY,
    )
    suggested = of(credential(Active), hints=Hints(renew_at={"a" * 16: NOW + DAY}))
    assert (suggested.needs, suggested.next_at) == (RENEWALS["ARI"], NOW + DAY)


def test_an_active_credential_names_its_successor_and_the_successors_trouble() -> None:
    coming = credential(Keyed, "b", trouble("STI_PA_TIMEOUT"))
    said = of(credential(Active), coming)
    assert said.needs == f"Its successor {'b' * 16} is on its way (keyed)."
    assert (said.who, said.next_at) == (Who.STI_PA, NOW + 8)
    assert said.command == f"kmsctl explain {'b' * 16}"
    assert of(credential(Active), credential(Keyed, "b")).next_at == NOW


def test_an_active_credential_whose_renewal_failed_says_why_and_whose_doing_it_is() -> None:
    one, lost = credential(Active), replace(credential(Failed, "f"))
    assert isinstance(lost.state, Failed)
    failed = replace(lost, state=replace(lost.state, at=NOW + 51 * DAY))
    said = explain(one, [one, failed], POLICY, NO_HINTS, NOW + 51 * DAY)
    assert said.needs == f"{RENEWALS['RETRY']} The last time: It said no."
    assert (said.who, said.next_at) == (Who.STI_CA, NOW + 51 * DAY + 900)


@pytest.mark.parametrize(
    ("one", "hints", "words"),
    [
        (
            replace(credential(Active), revocation=Revocation(NOW, 1)),
            NO_HINTS,
            "its certificate is revoked",
        ),
        (
            replace(credential(Active), condemned=Condemned(NOW, 1)),
            NO_HINTS,
            "somebody asked for its revocation",
        ),
        (
            credential(Active),
            Hints(condemned={"a" * 16: "ISSUER_NOT_TRUSTED"}),
            "its STI-CA left the STI-PA's list",
        ),
        (credential(Active), Hints(condemned={"a" * 16: "ELSE"}), "ELSE"),
    ],
)
def test_a_condemned_credential_is_renewed_at_once(
    one: Credential, hints: Hints, words: str
) -> None:
    said = of(one, hints=hints)
    assert said.why == f"Its profile signs with it, although {words}."
    assert (said.needs, said.next_at) == (RENEWALS["CONDEMNED"], NOW)


def test_an_expired_credential_says_so_first() -> None:
    one = credential(Active)
    said = explain(one, [one], POLICY, NO_HINTS, NOW + 100 * DAY)
    assert said.why == "Its certificate has expired: who verifies refuses what it signs."
    assert said.next_at == NOW + 100 * DAY


def test_a_retired_credential_can_be_gone_back_to_while_its_key_is_there() -> None:
    said = of(credential(Retired))
    assert (said.command, said.since, said.next_at) == (
        "kmsctl rollback acme",
        NOW - 9,
        NOW + DAY,
    )
    one = credential(Retired)
    assert explain(one, [one], POLICY, NO_HINTS, NOW + DAY).command == ""
    revoked = of(replace(one, revocation=Revocation(NOW, 1)))
    assert revoked.why.startswith("Its certificate was revoked")
    assert revoked.command == ""


def test_a_key_that_cannot_be_destroyed_is_the_hsms_business() -> None:
    said = of(credential(Retired, trouble=trouble("HSM_TOKEN_MISSING")))
    assert said.needs == "Its key could not be destroyed: It broke."
    assert (said.who, said.next_at) == (Who.HSM, NOW + 8)


def test_a_scheduled_destruction_can_be_taken_back_until_it_is_done() -> None:
    said = of(credential(Doomed))
    assert (said.command, said.next_at) == (f"kmsctl restore {'a' * 16}", NOW + DAY)
    one = credential(Doomed)
    assert explain(one, [one], POLICY, NO_HINTS, NOW + DAY).command == ""


def test_a_failed_credential_says_what_comes_next_for_its_profile() -> None:
    first = of(credential(Failed))
    assert first.why == "It failed when it was ordered: It said no."
    assert first.needs.startswith("Call them. The profile cannot sign")
    assert (first.who, first.command, first.next_at) == (Who.STI_CA, "kmsctl enroll acme", 0)
    renewal = of(credential(Failed, "f"), credential(Active))
    assert "another attempt is made" in renewal.needs
    assert (renewal.command, renewal.next_at) == ("kmsctl rotate acme", NOW + 50 * DAY)
    followed = of(credential(Failed, "f"), credential(Active), credential(New, "b"))
    assert followed.command == f"kmsctl explain {'b' * 16}"
    rehearsal = of(replace(credential(Failed, "f"), rehearsal=True), credential(Active))
    assert (rehearsal.command, rehearsal.next_at) == ("kmsctl rotate acme --rehearse", 0)


def test_a_rehearsal_switches_nothing() -> None:
    assert "nothing is switched" in of(replace(credential(Published), rehearsal=True)).needs
    assert of(credential(Destroyed)).who is Who.NOBODY
