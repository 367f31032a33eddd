"""`kmsctl revoke` on a whole deployment: whose signature the STI-CA takes, and a compromised key's
way out, also over a restart and while the STI-CA is away."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from kmsd.lab import Lab, running_lab
from tests.system import judges
from tests.system.key_room import KeyRoom, Table
from tests.system.programs import kill, until

PROFILES: dict[str, Table] = {"acme": {}, "birch": {}, "cedar": {}, "dogwood": {}}
SPCS = ["1234", "567A", "890B", "4321"]
COMPROMISED = ("--reason", "keyCompromise", "--yes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("revocation")


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    with running_lab(folder / "lab", spcs=SPCS, calm=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def room(folder: Path, lab: Lab) -> Iterator[KeyRoom]:
    room = KeyRoom(folder / "room", lab, profiles=PROFILES)
    with room.running():
        yield room


def test_a_compromised_key_is_replaced_then_revoked_then_destroyed(room: KeyRoom, lab: Lab) -> None:
    old = room.enrolled("acme")
    ran = room.kmsctl("revoke", old["id"], *COMPROMISED)
    assert ran.code == 0, ran.errors
    kinds = [one["kind"] for one in ran.documents]
    assert kinds == ["progress"] * (len(kinds) - 1) + ["credential"]
    steps = ran.documents[:-1]
    assert steps[0]["credential"]["condemned"]["reason"] == "keyCompromise"
    new = next(step for step in steps[1:] if step["credential"]["state"] == "active")
    revoked = next(step for step in steps if step["credential"]["revocation"])
    assert steps.index(new) < steps.index(revoked) < len(steps) - 1
    assert steps[-1]["credential"]["state"] == "destroyed"
    assert (steps[-1]["credential"]["id"], steps[-1]["done"]) == (old["id"], True)
    entry = judges.der_serial(lab, old["serial"])
    assert entry is not None
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    assert old["key_id"] not in room.inventory().ours
    assert new["credential"]["x5u"] in room.sign("acme")
    again = room.kmsctl("revoke", old["id"], *COMPROMISED)
    assert (again.code, again.last["credential"]["state"]) == (0, "destroyed")


def test_while_the_sti_ca_is_away_the_condemned_one_signs_and_it_heals_over_a_restart(
    folder: Path, lab: Lab
) -> None:
    room = KeyRoom(folder / "restarted", lab)
    with room.running() as keeper:
        old = room.enrolled()
        lab.set(ca="unavailable", retry_after=1)
        try:
            with room.following("revoke", old["id"], *COMPROMISED) as revoking:
                revoking.until("reason")  # the new one is held up, and kmsctl says by what
                told = room.credential(old["id"])["credential"]
                assert (told["state"], told["condemned"]["reason"]) == ("active", "keyCompromise")
                assert old["x5u"] in room.sign()
                kill(keeper)
        finally:
            lab.reset()
        with room.keeper():
            until("its key is gone", lambda: room.state_of(old["id"]) == "destroyed")
            assert judges.der_serial(lab, old["serial"]) is not None
            assert old["x5u"] not in room.sign()


def test_with_now_the_revocation_is_first_and_the_new_credential_comes_after(
    room: KeyRoom, lab: Lab
) -> None:
    old = room.enrolled("birch")
    ran = room.kmsctl("revoke", old["id"], *COMPROMISED, "--now")
    assert ran.code == 0, ran.errors
    steps = ran.documents[:-1]
    revoked = next(step for step in steps if step["credential"]["revocation"])
    new = next(step for step in steps[1:] if step["credential"]["state"] == "active")
    assert steps.index(revoked) < steps.index(new)
    assert steps[-1]["credential"]["state"] == "destroyed"
    assert new["credential"]["x5u"] in room.sign("birch")


def test_a_condemnation_is_taken_back_until_the_sti_ca_was_asked(room: KeyRoom, lab: Lab) -> None:
    old = room.enrolled("cedar")
    lab.set(ca="unavailable", retry_after=1)
    try:
        with room.following("revoke", old["id"], *COMPROMISED) as revoking:
            revoking.until("reason")
        restored = room.kmsctl("restore", old["id"])
        assert (restored.code, restored.last["credential"]["condemned"]) == (0, None)
    finally:
        lab.reset()
    until("the new one signs", lambda: room.state_of(old["id"]) == "retired")
    assert judges.der_serial(lab, old["serial"]) is None
    refused = room.kmsctl("restore", old["id"])
    assert (refused.code, refused.last["reason"]) == (1, "CREDENTIAL_STATE")


def test_a_certificate_is_revoked_by_its_own_key_and_the_account_is_not_asked(
    room: KeyRoom, lab: Lab
) -> None:
    old = room.enrolled("dogwood")
    room.rotated("dogwood")
    before = len(lab.requests())
    ran = room.kmsctl(
        "revoke", old["id"], "--reason", "superseded", "--by-certificate-key", "--yes"
    )
    assert ran.code == 0, ran.errors
    assert judges.der_serial(lab, old["serial"]) is not None
    asked = {entry["path"] for entry in lab.requests()[before:] if entry["method"] == "POST"}
    assert asked == {"/ca/revoke-cert"}
    compromised = room.kmsctl("revoke", old["id"], *COMPROMISED)
    assert compromised.last["credential"]["revocation"]["reason"] == "superseded"  # once is enough


def test_a_revocation_that_the_sti_ca_does_not_take_is_an_alarm_until_it_does(
    room: KeyRoom, lab: Lab
) -> None:
    old = room.profile("acme")["active"]
    lab.set(ca="unavailable", fault_path="/ca/revoke-cert", retry_after=1)
    try:
        held_up = room.kmsctl("revoke", old["id"], *COMPROMISED)
        assert (held_up.code, held_up.last["reason"]) == (1, "ACME_SERVER_INTERNAL")
        assert room.state_of(old["id"]) == "retired"  # the new one signs, and its key is kept
        assert old["key_id"] in room.inventory().ours
        alarms = [one for one in room.status()["alarms"] if one["subject"] == "acme"]
        assert [one["reason"] for one in alarms] == ["ACME_SERVER_INTERNAL"]
        assert old["id"] in alarms[0]["message"]
    finally:
        lab.reset()
    until("it is revoked and gone", lambda: room.state_of(old["id"]) == "destroyed")
    assert judges.der_serial(lab, old["serial"]) is not None
    assert not [one for one in room.status()["alarms"] if one["subject"] == "acme"]
