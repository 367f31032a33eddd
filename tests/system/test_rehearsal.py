"""`kmsctl rotate --rehearse` on a whole deployment: everything but the switch, and nothing left."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.lab import Lab, running_lab
from tests.system import judges
from tests.system.key_room import KeyRoom, Table
from tests.system.programs import until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsals")


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    with running_lab(folder / "lab", spcs=["1234", "567A", "890B"], calm=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def room(folder: Path, lab: Lab) -> Iterator[KeyRoom]:
    """A key room whose STI-CA has a staging service: the lab's foreign root, which is not in the
    STI-PA's list."""
    staging = {
        "staging_directory": lab.facts.ca_directory,
        "staging_root": str(folder / "lab" / "pki" / "foreign-ca-root.crt"),
    }
    profiles: dict[str, Table] = {"acme": {}, "birch": {"issuers": ["plain-ca"]}, "cedar": {}}
    room = KeyRoom(
        folder / "room", lab, profiles=profiles, issuers={"lab-ca": staging, "plain-ca": {}}
    )
    with room.running():
        yield room


def test_a_rehearsal_goes_through_everything_but_the_switch_and_leaves_nothing(
    room: KeyRoom, lab: Lab
) -> None:
    active = room.enrolled()
    keys, chains = room.inventory().ours, set(Path(lab.facts.cr_dir).glob("*.pem"))
    epoch = room.status()["epoch"]
    lab.set(chain="foreign_ca")
    try:
        ran = room.kmsctl("rotate", "acme", "--rehearse")
    finally:
        lab.reset()
    assert ran.code == 0, ran.errors
    states = [step["credential"]["state"] for step in ran.documents]
    assert states[-3:] == ["issued", "published", "rehearsed"]
    last = ran.last["credential"]
    assert (ran.last["done"], last["rehearsal"], last["issuer"]) == (True, True, "lab-ca/staging")
    until("its key is gone", lambda: room.state_of(last["id"]) == "destroyed")
    assert judges.fetch(lab, last["x5u"]).status_code == 404
    assert set(Path(lab.facts.cr_dir).glob("*.pem")) == chains
    assert len(room.inventory().ours - keys) == 1  # the account's at the staging service
    assert (room.profile()["active"]["id"], room.status()["epoch"]) == (active["id"], epoch)
    assert active["x5u"] in room.sign()


def test_the_staging_root_is_trusted_for_rehearsals_alone(room: KeyRoom, lab: Lab) -> None:
    lab.set(chain="foreign_ca")
    try:
        rotated = room.kmsctl("rotate", "acme")
        assert (rotated.code, rotated.last["reason"]) == (4, "CHAIN_NOT_ACCEPTED")
    finally:
        lab.reset()


def test_a_rehearsal_that_fails_says_why_and_disturbs_nothing(room: KeyRoom, lab: Lab) -> None:
    active = room.profile()["active"]
    lab.set(chain="wrong_spc")
    try:
        ran = room.kmsctl("rotate", "acme", "--rehearse")
    finally:
        lab.reset()
    assert (ran.code, ran.last["reason"]) == (4, "CHAIN_NOT_ACCEPTED")
    failed = ran.last["metadata"]["credential"]
    until("its key is gone", lambda: room.state_of(failed) == "destroyed")
    assert room.profile()["active"]["id"] == active["id"]
    assert room.profile()["coming"] is None


def test_a_rehearsal_on_its_way_holds_no_enrollment_up(room: KeyRoom, lab: Lab) -> None:
    lab.set(ca="unavailable", fault_path="/finalize", retry_after=1)
    try:
        with room.following("rotate", "cedar", "--rehearse") as rehearsing:
            held_up = rehearsing.until("state", "authorized")["credential"]
            lab.reset()
            enrolled = room.enrolled("cedar")
            assert (enrolled["rehearsal"], held_up["rehearsal"]) == (False, True)
            assert enrolled["id"] != held_up["id"]
            assert rehearsing.end().last["credential"]["state"] == "rehearsed"
    finally:
        lab.reset()
    assert room.profile("cedar")["active"]["id"] == enrolled["id"]


def test_without_a_staging_service_there_is_nothing_to_rehearse_at(room: KeyRoom) -> None:
    refused = room.kmsctl("rotate", "birch", "--rehearse")
    assert (refused.code, refused.last["reason"]) == (1, "STAGING_NOT_CONFIGURED")
    assert room.kmsctl("rotate", "nobody", "--rehearse").last["reason"] == "PROFILE_UNKNOWN"
