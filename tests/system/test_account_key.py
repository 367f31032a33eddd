"""`kmsctl account roll` on a whole deployment: the account stays, its key and SPC tokens go."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.lab import Lab, running_lab
from tests.system.key_room import KeyRoom
from tests.system.programs import kill, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accounts")


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    with running_lab(folder / "lab", spcs=["1234", "567A"], calm=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def room(folder: Path, lab: Lab) -> Iterator[KeyRoom]:
    room = KeyRoom(folder / "room", lab, profiles={"acme": {}, "birch": {}})
    with room.running():
        yield room


def asked(lab: Lab, since: int) -> list[str]:
    """The resources of the STI-CA that were posted to."""
    posts = (one for one in lab.requests()[since:] if one["method"] == "POST")
    return [one["path"].split("/")[2] for one in posts if one["path"].startswith("/ca/")]


def test_the_account_gets_a_new_key_the_old_one_goes_and_orders_go_on(
    room: KeyRoom, lab: Lab
) -> None:
    assert room.kmsctl("account", "roll", "acme").last["reason"] == "ACCOUNT_NONE"
    room.enrolled()
    before, since = room.inventory().ours, len(lab.requests())
    ran = room.kmsctl("account", "roll", "acme")
    assert ran.code == 0, ran.errors
    (account,) = ran.last["accounts"]
    assert asked(lab, since) == ["key-change"]
    after = room.inventory().ours
    assert (len(after - before), len(before - after)) == (1, 1)
    assert after - before == {account["key_id"]}
    since = len(lab.requests())
    room.rotated()
    assert "new-account" not in asked(lab, since)  # and the STI-CA took the SPC token
    again = room.kmsctl("account", "roll", "acme", "lab-ca").last["accounts"]
    assert again[0]["url"] == account["url"]
    assert again[0]["thumbprint"] != account["thumbprint"]


def test_an_order_that_is_open_goes_on_with_a_token_for_the_new_key(
    room: KeyRoom, lab: Lab
) -> None:
    assert room.profile()["active"]
    lab.set(ca="unavailable", fault_path="/ca/challenge/", retry_after=1)
    try:
        with room.following("rotate", "acme") as rotating:
            rotating.until("reason")
            rolled = room.kmsctl("account", "roll", "acme")
            assert rolled.code == 0, rolled.errors
            lab.reset()
            ended = rotating.end()
    finally:
        lab.reset()
    assert (ended.code, ended.last["credential"]["state"]) == (0, "active")


def test_a_lost_reply_and_a_refusal_leave_one_key_and_one_account(room: KeyRoom, lab: Lab) -> None:
    room.enrolled("birch")
    before = room.inventory().ours
    lab.set(ca="reply_lost", fault_path="key-change", fault_times=1)
    ran = room.kmsctl("account", "roll", "birch")
    assert ran.code == 0, ran.errors
    lab.set(ca="missing", fault_path="key-change", fault_times=0)
    refused = room.kmsctl("account", "roll", "birch")
    lab.reset()
    assert refused.code == 1
    assert len(room.inventory().ours) == len(before)
    room.rotated("birch")
    unknown = room.kmsctl("account", "roll", "nobody")
    assert (unknown.code, unknown.last["reason"]) == (1, "PROFILE_UNKNOWN")
    assert room.kmsctl("account", "roll", "birch", "x").last["reason"] == "ISSUER_UNKNOWN"


def test_a_key_change_that_was_begun_is_ended_by_the_next_keeper(folder: Path, lab: Lab) -> None:
    room = KeyRoom(folder / "restarted", lab)
    with room.running() as keeper:
        room.enrolled()
        before = room.inventory().ours
        lab.set(ca="unavailable", retry_after=1)
        held_up = room.kmsctl("account", "roll", "acme")
        assert (held_up.code, held_up.last["reason"]) == (1, "ACME_SERVER_INTERNAL")
        kill(keeper)
        lab.reset()
        since = len(lab.requests())
        with room.keeper():
            until("it is ended", lambda: "key-change" in asked(lab, since))
            until("the old key is gone", lambda: len(room.inventory().ours) == len(before))
            assert len(room.inventory().ours - before) == 1
            assert room.status()["hsm"]["foreign_objects"] == 0
            room.rotated()
            assert "new-account" not in asked(lab, since)
