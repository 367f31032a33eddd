"""`kmsctl rollback` on a whole deployment: to the former key and x5u, through a canary."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.hsm import Hsm
from kmsd.lab import Lab, running_lab
from tests.softhsm import pin_of
from tests.system import judges
from tests.system.key_room import IN_A_MOMENT, KeyRoom, Table
from tests.system.programs import until

PROFILES: dict[str, Table] = {
    "acme": {},
    "birch": {"policy": {"hold_key_days": IN_A_MOMENT}},
    "cedar": {},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with running_lab(folder, spcs=["1234", "567A", "890B"], calm=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[KeyRoom]:
    room = KeyRoom(tmp_path_factory.mktemp("room"), lab, profiles=PROFILES)
    with room.running():
        yield room


def test_a_profile_goes_back_and_forth_and_no_sti_ca_is_asked(
    room: KeyRoom, lab: Lab, tmp_path: Path
) -> None:
    nothing = room.kmsctl("rollback", "acme")
    assert (nothing.code, nothing.last["reason"]) == (1, "ROLLBACK_IMPOSSIBLE")
    first, second = room.enrolled(), room.rotated()
    lab.set(ca="unavailable", pa="unavailable")
    try:
        back = room.kmsctl("rollback", "acme")
        assert back.code == 0, back.errors
        assert [one["credential"]["state"] for one in back.documents] == ["published", "active"]
        assert back.last["credential"]["id"] == first["id"]
        identity = room.sign()
        assert first["x5u"] in identity
        assert room.state_of(second["id"]) == "retired"
        assert room.kmsctl("rollback", "acme").last["credential"]["id"] == second["id"]
        assert second["x5u"] in room.sign()
        assert room.state_of(first["id"]) == "retired"
    finally:
        lab.reset()
    assert judges.secsipidx_says(lab, identity, first["x5u"], tmp_path) == "ok"


def test_there_is_no_way_back_to_a_key_that_is_gone_or_a_certificate_that_is_revoked(
    room: KeyRoom,
) -> None:
    old = room.enrolled("birch")
    room.rotated("birch")
    until("its key is gone", lambda: room.state_of(old["id"]) == "destroyed")
    gone = room.kmsctl("rollback", "birch")
    assert (gone.code, gone.last["reason"]) == (1, "ROLLBACK_IMPOSSIBLE")

    old = room.enrolled("cedar")
    new = room.rotated("cedar")
    room.kmsctl("revoke", old["id"], "--reason", "superseded", "--yes")
    revoked = room.kmsctl("rollback", "cedar")
    assert (revoked.code, revoked.last["reason"]) == (1, "ROLLBACK_IMPOSSIBLE")
    assert "revoked" in revoked.last["message"]
    assert new["x5u"] in room.sign("cedar")


def test_a_key_that_somebody_took_out_of_the_hsm_is_missed_before_anything_changes(
    room: KeyRoom,
) -> None:
    old = room.profile("cedar")["active"]
    new = room.rotated("cedar")
    public = judges.spki(room.credential(old["id"])["birth"])
    with Hsm.open(room.token, pin_of(room.token)) as hsm:
        hsm.destroy(old["key_id"], public)
    refused = room.kmsctl("rollback", "cedar")
    assert (refused.code, refused.last["reason"]) == (1, "ROLLBACK_IMPOSSIBLE")
    assert "not in the HSM" in refused.last["message"]
    assert room.state_of(old["id"]) == "retired"
    assert new["x5u"] in room.sign("cedar")


def test_an_unknown_profile_and_one_with_a_credential_on_its_way_are_refused(
    room: KeyRoom, lab: Lab
) -> None:
    assert room.kmsctl("rollback", "nobody").last["reason"] == "PROFILE_UNKNOWN"
    lab.set(ca="unavailable", retry_after=1)
    try:
        with room.following("rotate", "acme") as rotating:
            rotating.until("reason")
        refused = room.kmsctl("rollback", "acme")
        assert (refused.code, refused.last["reason"]) == (1, "PROFILE_BUSY")
        coming = refused.last["metadata"]["credential"]
        assert room.kmsctl("destroy", coming, "--yes").code == 0
        assert room.kmsctl("rollback", "acme").code == 0
    finally:
        lab.reset()
