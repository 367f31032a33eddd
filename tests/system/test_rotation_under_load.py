"""A hundred rotations of a profile while a client signs with it at half of what the signers can.

The client (`caller`) counts a call as signed when what came of it verifies, there and then, against
the chain at its own x5u. How long the calls took, with rotations and without, is reported and
not judged: how fast the machine is that runs this test says nothing about kmsd.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.lab import running_lab
from tests.contract.tokens import read_identity
from tests.system import judges
from tests.system.caller import Caller, Tally, calling
from tests.system.key_room import IN_A_MOMENT, KeyRoom

pytestmark = pytest.mark.rotation_under_load

ROTATIONS = 100
JUDGED_EVERY = 20
"""Rotations between two PASSporTs that are shown to others' software."""
STEADY_SECONDS = 3.0
FIGURES = {
    "signed": "signed",
    "failed": "failed",
    "asked_again": "asked_again",
    "seconds": "seconds",
    "p50_ms": "p50",
    "p99_ms": "p99",
    "worst_ms": "worst",
}
"""What is reported of each phase, by its name there and in a Tally."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyRoom]:
    """Two signers. A key that is not needed any more is destroyed at once: whoever still had a
    use for it would be noticed."""
    folder = tmp_path_factory.mktemp("load")
    with running_lab(folder / "lab", spcs=["1234"], calm=True) as lab:
        lab.set(retry_after=0)
        room = KeyRoom(
            folder / "room", lab, profiles={"acme": {"policy": {"hold_key_days": IN_A_MOMENT}}}
        )
        with room.running(signers=2):
            yield room


def test_a_hundred_rotations_under_load_cost_no_signature(
    room: KeyRoom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room.enrolled()
    with calling(room) as caller:
        rate = capacity(room, caller) / 2
        x5us = [room.rotated()["x5u"]]
        caller.calls(rate)
        time.sleep(STEADY_SECONDS)
        steady = caller.tally()
        for number in range(1, ROTATIONS + 1):
            x5us.append(room.rotated()["x5u"])
            if number % JUDGED_EVERY == 0:
                # Every signer has acknowledged it: whichever is asked now signs with it.
                assert read_identity(room.sign()).x5u == x5us[-1]
                others_agree(room, caller.last(), tmp_path)
        rotating = caller.tally()
        told(capsys, rate, steady, rotating)
    assert (steady.failed, steady.why) == (0, [])
    assert (rotating.failed, rotating.why) == (0, [])
    assert len(set(x5us)) == ROTATIONS + 1
    assert steady.by_x5u.keys() == {x5us[0]}
    assert rotating.by_x5u.keys() == set(x5us)
    assert sum(rotating.by_x5u.values()) == rotating.signed
    assert {judges.fetch(room.lab, x5u).status_code for x5u in x5us} == {200}
    assert [one["x5u"] for one in room.credentials()] == [x5us[-1]]


def capacity(room: KeyRoom, caller: Caller) -> float:
    """Signatures a second, while keeper and lab are at work on the same processors."""
    caller.calls(math.inf)
    for _ in range(3):
        room.rotated()
    caller.calls(0)
    found = caller.tally()
    assert (found.failed, found.why) == (0, [])
    return found.signed / found.seconds


def others_agree(room: KeyRoom, identity: str, folder: Path) -> None:
    """A STI-VS and OpenSSL accept it too; they fetch the chain for themselves."""
    x5u = read_identity(identity).x5u
    assert judges.secsipidx_says(room.lab, identity, x5u, folder) == "ok"
    assert judges.openssl_says(room.lab, judges.fetch(room.lab, x5u).text, folder) == "OK"


def told(capsys: pytest.CaptureFixture[str], rate: float, steady: Tally, rotating: Tally) -> None:
    """One line of JSON for whoever reads the run's output."""
    figures = {"calls_per_s": round(rate), "rotations": ROTATIONS} | {
        f"{phase}_{name}": getattr(tally, member)
        for phase, tally in (("steady", steady), ("rotating", rotating))
        for name, member in FIGURES.items()
    }
    with capsys.disabled():
        sys.stdout.write(f"\nrotation_under_load {json.dumps(figures)}\n")
