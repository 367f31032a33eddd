"""`kmsctl trust forget` on a whole deployment: numbers start again when a person says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.lab import Lab, running_lab
from kmsd.store import Store
from tests.system.key_room import KeyRoom, Table
from tests.system.programs import until


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running_lab(tmp_path / "lab", spcs=["1234"], calm=True) as lab:
        yield lab


def test_lower_numbers_are_accepted_once_a_person_says_so_and_only_if_the_root_signed_them(
    tmp_path: Path, lab: Lab
) -> None:
    room = KeyRoom(tmp_path / "room", lab)

    def trust() -> Table:
        (found,) = room.status()["trust"]
        return dict(found)

    with room.keeper():
        until("there is a list", lambda: trust()["sequence"] and trust()["crl_number"])
        before = trust()
        lab.set(ca_list="foreign")
        forged = room.kmsctl("trust", "forget", "lab", "--yes")
        assert (forged.code, forged.last["reason"]) == (1, "TRUST_LIST_REJECTED")
        assert trust()["sequence"] == before["sequence"]
        lab.set(ca_list="lower_sequence")
        unasked = room.kmsctl("trust", "forget", "lab")
        assert (unasked.code, unasked.last["reason"]) == (2, "CONFIRMATION_MISSING")
        assert trust()["sequence"] == before["sequence"]
        ran = room.kmsctl("trust", "forget", "lab", "--yes")
        assert ran.code == 0, ran.errors
        assert ran.last["before"]["sequence"] == before["sequence"]
        assert ran.last["after"]["sequence"] < before["sequence"]
        assert trust()["sequence"] == ran.last["after"]["sequence"]
        unknown = room.kmsctl("trust", "forget", "nobody", "--yes")
        assert (unknown.code, unknown.last["reason"]) == (1, "AUTHORITY_UNKNOWN")
    with Store.look(f"sqlite:///{room.state}/kmsd.db") as store:
        (event,) = [one for one in store.events() if one.what == "trust_forget"]
    assert event.detail["sequence"].startswith(f"{before['sequence']} -> ")
