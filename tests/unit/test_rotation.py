"""When a profile's credential is renewed."""

from msgspec.structs import replace

from kmsd.model import Active, BirthRecord, Certificate, Credential, Failed, New, Revocation
from kmsd.rotation import Expect, Keep, Renew, plan
from kmsd.settings import Policy

DAY = 86_400
START = 1_800_000_000
BIRTH = BirthRecord("ab" * 16, "label", START, b"", {}, "m", "t", "s")
CERTIFICATE = Certificate("pem", "ca", "", "01", "cd" * 32, START, START + 100 * DAY)
ACTIVE = Credential(
    "a" * 16, "acme", "1234", "ab" * 16, START, Active(BIRTH, CERTIFICATE, "https://x", START, 1)
)
POLICY = Policy(renew_at=0.5)


def test_a_profile_that_was_never_enrolled_waits_for_a_person() -> None:
    assert plan(START, [], POLICY) == Keep(until=0)


def test_a_credential_is_renewed_at_its_fraction_of_the_lifetime() -> None:
    due = START + 50 * DAY
    assert plan(due - 1, [ACTIVE], POLICY) == Keep(until=due)
    assert plan(due, [ACTIVE], POLICY) == Renew()


def test_one_on_its_way_is_waited_for() -> None:
    coming = Credential("b" * 16, "acme", "1234", "cd" * 16, START, New())
    assert plan(START + 99 * DAY, [coming, ACTIVE], POLICY) == Expect("b" * 16)


def test_after_a_failed_renewal_the_next_one_comes_an_hour_later() -> None:
    at = START + 60 * DAY
    failed = Credential(
        "b" * 16, "acme", "1234", "cd" * 16, at, Failed("keyed", at, "REASON", "message")
    )
    assert plan(at + 3599, [failed, ACTIVE], POLICY) == Keep(until=at + 3600)
    assert plan(at + 3600, [failed, ACTIVE], POLICY) == Renew()


def test_a_revoked_credential_is_renewed_at_once() -> None:
    revoked = replace(ACTIVE, revocation=Revocation(START, 1))
    assert plan(START, [revoked], POLICY) == Renew()
