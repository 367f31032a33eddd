"""Several STI-CAs of a profile: real processes, and a lab that is all of them by different ways."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509

from kmsd.lab import Lab, running_lab
from kmsd.lab.state import Revoked
from tests.system.clocked import Clock
from tests.system.key_room import KeyRoom, Table
from tests.system.programs import until
from tests.system.road import Road, road

HOUR = 3600
BOTH = {"acme": {"issuers": ["first", "second"]}}


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def lab(tmp_path: Path, clock: Clock) -> Iterator[Lab]:
    with running_lab(tmp_path / "lab", spcs=["1234"], calm=True, clock=clock.world) as lab:
        yield lab


@pytest.fixture
def way(lab: Lab) -> Iterator[Road]:
    """To the first STI-CA."""
    port = urlsplit(lab.facts.ca_directory).port
    assert port
    with road(port) as way:
        yield way


def two(folder: Path, lab: Lab, clock: Clock, **first: object) -> KeyRoom:
    issuers: dict[str, Table] = {"first": dict(first), "second": {}}
    return KeyRoom(folder / "room", lab, profiles=BOTH, issuers=issuers, kmsd=clock.program)


def alarms(room: KeyRoom) -> set[tuple[str, str]]:
    return {(one["subject"], one["reason"]) for one in room.status()["alarms"]}


def issuer(room: KeyRoom) -> str:
    return str(room.profile()["active"]["issuer"])


def test_another_sti_ca_issues_while_the_first_is_down_and_the_first_again_when_it_is_back(
    tmp_path: Path, lab: Lab, clock: Clock, way: Road
) -> None:
    room = two(tmp_path, lab, clock, directory=way.leads(lab.facts.ca_directory))
    way.close()
    with room.running():
        room.enrolled()
        assert issuer(room) == "second"
        assert ("acme", "ISSUER_FAILED_OVER") in alarms(room)
        way.open()
        room.rotated()  # a person waits for no back-off
        assert issuer(room) == "first"
        assert alarms(room) == set()


def test_who_refuses_is_left_alone_also_after_a_restart(
    tmp_path: Path, lab: Lab, clock: Clock
) -> None:
    room = two(tmp_path, lab, clock, rules={"tnauthlist_encoding": "base64"})
    with room.running():
        room.enrolled()
        assert issuer(room) == "second"
        expected = {("first", "ISSUER_IN_BACK_OFF"), ("acme", "ISSUER_FAILED_OVER")}
        assert alarms(room) == expected
    with room.running():
        assert alarms(room) == expected
        clock.passes(2 * HOUR)
        assert alarms(room) == {("acme", "ISSUER_FAILED_OVER")}


def test_an_sti_ca_that_says_renew_now_is_followed_and_told_what_is_replaced(
    tmp_path: Path, lab: Lab, clock: Clock
) -> None:
    room = KeyRoom(tmp_path / "room", lab, kmsd=clock.program)
    lab.set(ari=True, ari_now=True)
    with room.running():
        old = room.enrolled()
        until("it is renewed", lambda: room.profile()["active"]["id"] != old["id"])
        lab.set(ari_now=False)
        assert "why=ARI" in room.log() or '"why": "ARI"' in room.log()
    replaced = [order.replaces for order in lab.world.book.orders.values() if order.replaces]
    assert replaced


def test_a_credential_on_the_crl_is_told_and_replaced_at_another_sti_ca(
    tmp_path: Path, lab: Lab, clock: Clock
) -> None:
    room = two(tmp_path, lab, clock)
    with room.running():
        old = room.enrolled()
        assert issuer(room) == "first"
    leaf = next(iter(lab.world.book.issued.values())).certificate
    revoke(lab, leaf)
    clock.passes(2 * HOUR)
    with room.running():
        until("it is replaced", lambda: room.profile()["active"]["id"] != old["id"])
        assert issuer(room) == "second"
        assert "CREDENTIAL_REVOKED" in room.log()
        until("nothing is wrong", lambda: ("acme", "CREDENTIAL_REVOKED") not in alarms(room))


def revoke(lab: Lab, leaf: x509.Certificate) -> None:
    """As the STI-CA does by itself: the STI-PA's next CRL has it."""
    lab.world.book.revoked.append(Revoked(leaf.issuer, leaf.serial_number, 4, lab.world.now()))
