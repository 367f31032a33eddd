"""What the store says is due, the same for every database it can live on."""

from msgspec.structs import replace

from kmsd.failures import FailureClass
from kmsd.issuers import Health
from kmsd.model import Credential, Destroyed, Keyed, New, Retired, State, Trouble
from kmsd.renewal import Suggestion, Window
from kmsd.standing import REVOKED, Distrusted
from kmsd.store import Known, Spare, Store
from tests.contract.test_store import ACTIVE, BIRTH, FAILED, becomes, credential, store, url

__all__ = ["store", "url"]  # fixtures


def due(store: Store, now: int) -> list[str]:
    """Numbers of credentials: of active ones by the profile whose plan is due, first."""
    plans = store.agenda.plans_due(now, limit=100)
    active = {one.profile: one.id[-1] for one in store.all_active()}
    return [active[name] for name in plans] + [one.id[-1] for one in store.agenda.due(now)]


def put(store: Store, number: int, state: State, profile: str = "acme") -> Credential:
    return store.insert(credential(number, state, profile))


def plan(store: Store, until: int | None, *profiles: str) -> list[Known]:
    seen: list[Known] = []

    def decide(known: Known) -> int | None:
        seen.append(known)
        return until

    store.agenda.plan(profiles or ("acme",), decide)
    return seen


def suggestion(number: int, ask_at: int) -> Suggestion:
    return Suggestion(credential(number).id, ask_at, Window(5, 9), "https://ca/why", 1)


def distrusted(number: int) -> Distrusted:
    return Distrusted(credential(number).id, "acme", "ca", REVOKED, "It is on the CRL.", 7)


def test_each_credential_is_due_when_its_state_says(store: Store) -> None:
    put(store, 1, Destroyed(key_id="00" * 16, at=7))
    put(store, 2, Retired(BIRTH, ACTIVE.certificate, "https://cr/1", since=2, destroy_at=50))
    put(store, 3, replace(FAILED, birth=None))
    put(store, 4, Keyed(BIRTH))
    stuck = replace(credential(5, New(), "other"), trouble=Trouble("R", "m", 1, 1, retry_at=40))
    store.insert(stuck)
    assert due(store, 0) == ["4"]
    assert due(store, 39) == ["4"]
    assert due(store, 40) == ["4", "5"]
    assert due(store, 10**9) == ["4", "5", "2"]


def test_what_is_longest_due_comes_first(store: Store) -> None:
    for number in range(1, 5):
        trouble = Trouble("R", "m", 1, 1, retry_at=10 * (9 - number))
        store.insert(replace(credential(number, profile=f"p{number}"), trouble=trouble))
        put(store, number + 4, ACTIVE, f"p{number}")
        plan(store, 10 * number, f"p{number}")
    assert [one.id[-1] for one in store.agenda.due(100)] == ["4", "3", "2", "1"]
    assert store.agenda.plans_due(100, limit=3) == ("p1", "p2", "p3")
    assert store.agenda.plans_due(19, limit=3) == ("p1",)


def test_a_plan_says_when_the_active_one_is_due(store: Store) -> None:
    put(store, 1, ACTIVE)
    assert due(store, 0) == ["1"]
    (known,) = plan(store, 60)
    assert known.profile == "acme"
    assert [one.id[-1] for one in known.credentials] == ["1"]
    assert due(store, 59) == []
    assert due(store, 60) == ["1"]
    plan(store, None)
    assert due(store, 10**12) == []


def test_a_plan_is_made_of_everything_that_is_known_of_its_profile_alone(store: Store) -> None:
    put(store, 1, Destroyed(key_id="00" * 16, at=7))
    put(store, 2, ACTIVE)
    put(store, 3, New())
    put(store, 4, ACTIVE, "other")
    put(store, 5, ACTIVE, "third")
    store.agenda.say(suggestion(2, 30), distrusted(2), suggestion(4, 40))
    known = {one.profile: one for one in plan(store, 60, "acme", "other")}
    assert {name: [c.id[-1] for c in one.credentials] for name, one in known.items()} == {
        "acme": ["3", "2"],
        "other": ["4"],
    }
    second, fourth = credential(2).id, credential(4).id
    assert known["acme"].suggestions == {second: suggestion(2, 30)}
    assert known["acme"].distrusted == {second: distrusted(2)}
    assert known["other"].suggestions == {fourth: suggestion(4, 40)}
    assert known["other"].distrusted == {}
    assert due(store, 59) == ["5", "3"]
    assert store.agenda.known(["acme"]) == (known["acme"],)


def test_any_change_in_a_profile_makes_its_plan_due(store: Store) -> None:
    put(store, 1, ACTIVE)
    put(store, 9, ACTIVE, "other")
    plan(store, 1000, "acme", "other")
    coming = put(store, 2, New())
    assert due(store, 0) == ["1", "2"]
    plan(store, 1000)
    store.save(becomes(coming, replace(FAILED, birth=None)))
    assert due(store, 0) == ["1"]
    plan(store, 1000)
    store.agenda.say(suggestion(1, 30))
    assert due(store, 0) == ["1"]
    plan(store, 1000)
    store.agenda.say(distrusted(1))
    assert due(store, 0) == ["1"]
    plan(store, 1000)
    store.agenda.trust_again(credential(1).id)
    assert due(store, 0) == ["1"]
    plan(store, 1000)
    store.agenda.begin_anew()
    assert due(store, 0) == ["1", "9"]


def test_what_was_never_looked_at_is_put_off_unless_it_changed(store: Store) -> None:
    retired = put(store, 1, Retired(BIRTH, ACTIVE.certificate, "x", since=2, destroy_at=50))
    coming = put(store, 2, Keyed(BIRTH), "other")
    active = put(store, 3, ACTIVE, "third")
    with store.agenda._database.writing() as connection:
        connection.exec_driver_sql("UPDATE credentials SET due = 0")  # as the migration does
    stuck = replace(coming, trouble=Trouble("R", "m", 1, 1, retry_at=40))
    store.save(stuck)
    store.agenda.put_off([retired, coming, active])
    assert due(store, 0) == ["3"]
    assert due(store, 40) == ["3", "2"]
    assert due(store, 50) == ["3", "2", "1"]
    store.agenda.begin_anew()  # a keeper starts, and its clock may have been set back
    assert sorted(due(store, 0)) == ["2", "3"]
    assert due(store, 50)[2:] == ["1"]


def test_what_is_said_of_a_credential_is_forgotten_when_it_does_not_sign_any_more(
    store: Store,
) -> None:
    active = put(store, 1, ACTIVE)
    store.agenda.say(suggestion(1, 30), distrusted(1))
    assert store.agenda.suggestion(active.id) == suggestion(1, 30)
    assert store.agenda.distrusted() == (distrusted(1),)
    retired = Retired(BIRTH, ACTIVE.certificate, "https://cr/1", since=2, destroy_at=50)
    store.save(becomes(active, retired))
    assert store.agenda.suggestion(active.id) is None
    assert store.agenda.distrusted() == ()


def test_what_is_said_last_counts(store: Store) -> None:
    put(store, 1, ACTIVE)
    store.agenda.say(suggestion(1, 30))
    later = Suggestion(credential(1).id, 99)
    store.agenda.say(later)
    assert store.agenda.suggestion(later.credential) == later


def test_how_an_issuer_fared_is_kept_for_all_and_for_each_profile(store: Store) -> None:
    down = Health("ca", 2, FailureClass.UNREACHABLE, 50, reason="R", message="m", since=1)
    refused = Health("ca", 1, FailureClass.REFUSED, 90, "acme")
    others = Health("ca", 1, FailureClass.BAD_CHAIN, 90, "other")
    for health in (down, refused, others):
        store.agenda.save_health(health)
    assert store.agenda.healths() == (down, refused, others)
    assert store.agenda.healths("acme") == (down, refused)
    worse = replace(down, failures=3)
    store.agenda.save_health(worse)
    assert store.agenda.healths("third") == (worse,)
    store.agenda.forget_health("ca", "")
    store.agenda.forget_health("ca", "nobody")
    assert store.agenda.healths() == (refused, others)


def test_a_key_made_in_advance_is_spare_until_a_credential_has_it(store: Store) -> None:
    first, second = Spare("0" * 31 + "1", "acme"), Spare("0" * 31 + "2", "other", BIRTH)
    for spare in (first, second):
        store.agenda.save_spare(spare)
    made = replace(first, birth=BIRTH)
    store.agenda.save_spare(made)
    assert store.agenda.spares() == (made, second)
    assert store.agenda.spares("acme") == (made,)
    store.insert(credential(1))  # its key id is the first one's
    assert store.agenda.spares() == (second,)
    store.agenda.drop_spare(second.key_id)
    assert store.agenda.spares() == ()
