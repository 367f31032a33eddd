"""`kmsctl explain` and `kmsctl plan` on a whole deployment: what they foretell is what is seen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.lab import Lab, running_lab
from tests.system.key_room import KeyRoom


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), spcs=["1234", "567A"], calm=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[KeyRoom]:
    folder: Path = tmp_path_factory.mktemp("room")
    room = KeyRoom(folder, lab, profiles={"acme": {}, "birch": {}})
    with room.running():
        yield room


def test_a_profile_that_was_never_enrolled_waits_for_a_person(room: KeyRoom) -> None:
    (told,) = room.kmsctl("explain", "birch").last["explanations"]
    assert (told["state"], told["who"]) == ("none", "operator")
    assert told["command"] == "kmsctl enroll birch"
    (entry,) = room.kmsctl("plan", "--profile", "birch").last["entries"]
    assert (entry["what"], entry["why"]) == ("enroll", "NOT_ENROLLED")


def test_the_calendar_of_a_year_has_every_renewal_and_begins_with_what_profiles_says(
    room: KeyRoom,
) -> None:
    active = room.enrolled()
    calendar = room.kmsctl("plan", "--days", "400", "--profile", "acme").last
    entries = calendar["entries"]
    assert (calendar["days"], calendar["cut"]) == (400, False)
    assert [one["at"] for one in entries] == sorted(one["at"] for one in entries)
    renewals = [one for one in entries if one["what"] == "renew"]
    assert 5 <= len(renewals) <= 7  # 90 days each, renewed after two thirds
    assert renewals[0]["credential"] == active["id"]
    assert renewals[0]["at"] == room.profile()["next_step_at"]
    assert {one["credential"] for one in renewals[1:]} == {""}
    (told,) = room.kmsctl("explain", "acme").last["explanations"]
    assert (told["credential"], told["state"], told["who"]) == (active["id"], "active", "kmsd")
    assert told["next_at"] == renewals[0]["at"]


def test_a_credential_that_is_held_up_says_by_whom(room: KeyRoom, lab: Lab) -> None:
    lab.set(pa="unavailable", retry_after=1)
    try:
        with room.following("rotate", "acme") as rotating:
            rotating.until("reason", "STI_PA_UNAVAILABLE")
        told = room.kmsctl("explain", "acme").last["explanations"]
        assert [one["state"] for one in told] == ["active", "keyed"]
        assert told[1]["who"] == "sti-pa"
        code, shown, _ = room.kmsctl_for_people("explain", told[1]["credential"])
        assert code == 0
        assert "the STI-PA" in shown
    finally:
        lab.reset()


def test_what_cannot_be_explained_or_planned_is_refused(room: KeyRoom) -> None:
    assert room.kmsctl("explain", "nobody").last["reason"] == "CREDENTIAL_ID_INVALID"
    assert room.kmsctl("explain", "0123456789abcdef").last["reason"] == "CREDENTIAL_UNKNOWN"
    assert room.kmsctl("plan", "--profile", "nobody").last["reason"] == "PROFILE_UNKNOWN"
    assert room.kmsctl("plan", "--days", "0").code == 2
