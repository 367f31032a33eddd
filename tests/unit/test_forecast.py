"""The calendar of what will happen."""

from msgspec.structs import replace

from kmsd.forecast import Known, Planned, What, forecast
from kmsd.model import (
    Active,
    BirthRecord,
    Certificate,
    Credential,
    Doomed,
    Failed,
    New,
    Retired,
    Revocation,
)
from kmsd.rotation import Hints
from kmsd.settings import Policy

HOUR, DAY, NOW = 3_600, 86_400, 1_800_000_000
BIRTH = BirthRecord("ab" * 16, "label", NOW, b"", {}, "m", "t", "s")
POLICY = Policy(renew_at=0.5, jitter=0)


def credential(id: str, lifetime: int = 100 * DAY, begun: int = NOW) -> Credential:
    certificate = Certificate("pem", "ca", "", "01", "cd" * 32, begun, begun + lifetime)
    state = Active(BIRTH, certificate, "https://x", begun, 1)
    return Credential(id * 16, "acme", "1234", "ab" * 16, begun, state)


def retired(id: str, destroy_at: int) -> Credential:
    one = credential(id, begun=NOW - 60 * DAY)
    assert isinstance(one.state, Active)
    state = Retired(BIRTH, one.state.certificate, "https://x", NOW - DAY, destroy_at)
    return replace(one, state=state)


def known(*credentials: Credential, policy: Policy = POLICY, hints: Hints | None = None) -> Known:
    return credentials, policy, hints or Hints()


def days(planned: list[Planned]) -> list[tuple[float, str, str, str]]:
    return [((p.at - NOW) / DAY, p.credential[:1], p.what.value, p.why) for p in planned]


def test_a_rotation_is_a_renewal_a_retirement_a_destruction_and_an_expiry() -> None:
    assert days(forecast(NOW, 120, {"acme": known(credential("a"))})) == [
        (50, "a", "renew", "FRACTION"),
        (50, "a", "retire", "SUPERSEDED"),
        (51, "a", "destroy_key", "HOLDING_TIME"),
        (100, "", "renew", "FRACTION"),
        (100, "", "retire", "SUPERSEDED"),
        (100, "a", "expire", "NOT_AFTER"),
        (101, "", "destroy_key", "HOLDING_TIME"),
    ]


def test_what_is_scheduled_already_is_in_it() -> None:
    gone = retired("r", NOW + DAY)
    assert isinstance(gone.state, Retired)
    doomed = replace(gone, id="d" * 16, state=Doomed(gone.state, BIRTH, NOW, NOW + 2 * DAY))
    failed = replace(gone, id="f" * 16, state=Failed("keyed", NOW, "R", "m", birth=BIRTH))
    keyless = replace(gone, id="k" * 16, state=Failed("new", NOW, "R", "m"))
    fresh = credential("a")
    assert days(forecast(NOW, 45, {"acme": known(gone, doomed, failed, keyless, fresh)})) == [
        (0, "f", "destroy_key", "FAILED"),
        (1, "r", "destroy_key", "HOLDING_TIME"),
        (2, "d", "destroy_key", "ASKED"),
        (40, "r", "expire", "NOT_AFTER"),
        (40, "d", "expire", "NOT_AFTER"),
    ]


def test_a_profile_without_a_credential_waits_for_a_person() -> None:
    assert days(forecast(NOW, 400, {"acme": known()})) == [(0, "", "enroll", "NOT_ENROLLED")]
    coming = replace(credential("c"), state=New())
    assert days(forecast(NOW, 400, {"acme": known(coming)})) == [(0, "c", "renew", "ON_THE_WAY")]


def test_what_is_on_its_way_or_cannot_wait_comes_first() -> None:
    coming = replace(credential("c"), state=New())
    both = known(credential("a"), coming)
    assert days(forecast(NOW, 1, {"acme": both}))[0] == (0, "a", "renew", "ON_THE_WAY")
    revoked = known(replace(credential("a"), revocation=Revocation(NOW, 1)))
    planned = days(forecast(NOW, 120, {"acme": revoked}))
    assert [entry for entry in planned if entry[2] == "renew"] == [
        (0, "a", "renew", "CONDEMNED"),
        (50, "", "renew", "FRACTION"),
        (100, "", "renew", "FRACTION"),
    ]


def test_a_suggestion_counts_for_the_credential_it_is_for() -> None:
    hints = Hints(renew_at={"a" * 16: NOW + 10 * DAY})
    planned = days(forecast(NOW, 70, {"acme": known(credential("a"), hints=hints)}))
    assert [entry[::3] for entry in planned if entry[2] == "renew"] == [
        (10, "ARI"),
        (60, "FRACTION"),
    ]


def test_renewals_wait_for_windows_in_it_too() -> None:
    policy = replace(POLICY, windows=("Mon 08:00-09:00",))
    planned = forecast(NOW, 60, {"acme": known(credential("a"), policy=policy)})
    assert (planned[0].what, planned[0].why) == (What.RENEW, "WINDOW")


def test_all_profiles_are_in_one_order_of_time() -> None:
    profiles = {
        f"p{n}": known(replace(credential("abcdef"[n], DAY * (n + 7)), profile=f"p{n}"))
        for n in range(6)
    }
    planned = forecast(NOW, 400, profiles)
    assert [p.at for p in planned] == sorted(p.at for p in planned)
    assert {p.profile for p in planned} == set(profiles)
    assert len(planned) > 1000
    assert forecast(NOW, 400, profiles, limit=10) == planned[:10]


def test_the_first_entries_of_a_very_long_list_come_without_the_rest() -> None:
    hourly = {f"p{n}": known(credential("a", HOUR)) for n in range(1000)}
    assert len(forecast(NOW, 400, hourly, limit=100)) == 100


def test_a_lifetime_of_nothing_makes_no_endless_list() -> None:
    assert len(forecast(NOW, 1, {"acme": known(credential("a", 1))})) < 20_000
