"""Two hosts, one HSM token, one PostgreSQL: one keeper acts, and the other one takes over."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from subprocess import Popen

import pytest

from kmsd.lab import Lab, running_lab
from tests.postgres import PASSWORD, Postgres, database_of, postgres
from tests.system.key_room import KeyRoom
from tests.system.programs import kill, program, until

REVOKE = ("revoke", "--reason", "superseded", "--even-if-active")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), spcs=("1234",)) as lab:
        yield lab


@pytest.fixture
def rooms(tmp_path: Path, lab: Lab, server: Postgres) -> tuple[KeyRoom, KeyRoom]:
    """East and west: what two hosts with one network HSM have in common, and no more."""
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    store = {"url": server.database(tcp=True), "password": str(password)}
    east = KeyRoom(tmp_path / "east", lab, store=store)
    return east, KeyRoom(tmp_path / "west", lab, store=store, shared_token=east.token)


def stands_by(room: KeyRoom) -> str:
    """Why its keeper changes nothing; empty when it acts."""
    answer = room.status()
    return str(answer.get("standing_by", answer.get("reason")))


def until_term(room: KeyRoom, number: int) -> None:
    """Waits until its keeper has acted so often."""
    until(f"term {number}", lambda: f"event=acting term={number}" in room.log())


def can_sign(room: KeyRoom) -> bool:
    said = room.acknowledged()
    return said is not None and said.acknowledgement.profiles == 1


def signs_with(room: KeyRoom, credential: str) -> bool:
    """Whether what the room's signer makes names this credential's chain."""
    return str(room.credential(credential)["credential"]["x5u"]) in room.sign()


def test_one_keeper_acts_and_the_other_takes_over_when_it_is_killed(
    rooms: tuple[KeyRoom, KeyRoom],
) -> None:
    east, west = rooms
    with ExitStack() as opened:
        acting = opened.enter_context(east.running())
        opened.enter_context(west.running())
        assert stands_by(east) == ""
        assert f"process {acting.pid}" in stands_by(west)
        for words in (("enroll", "acme"), ("rotate", "acme")):
            refused = west.kmsctl(*words)
            assert refused.code == 1
            assert "KEEPER_STANDS_BY" in refused.errors
        first = east.enrolled()
        # The signers of the other host follow, though its keeper changes nothing.
        until("west follows", lambda: can_sign(west))
        assert signs_with(west, first["id"])
        for change in (("destroy", first["id"], "--yes"), (*REVOKE, first["id"], "--yes")):
            assert "KEEPER_STANDS_BY" in west.kmsctl(*change).errors
        kill(acting)
        until("west acts", lambda: stands_by(west) == "")
        second = west.rotated()
        assert signs_with(west, second["id"])
        with east.keeper():
            assert "acts on this store" in stands_by(east)
            until("east follows", lambda: signs_with(east, second["id"]))


def test_a_database_that_is_gone_stops_changes_and_never_signatures(
    rooms: tuple[KeyRoom, KeyRoom], server: Postgres
) -> None:
    room, _ = rooms
    with room.running() as keeper:
        first = room.enrolled()
        for number in range(2):
            server.stop()
            try:
                for words in (("status",), ("rotate", "acme"), ("credentials",)):
                    ran = room.kmsctl(*words)
                    assert ran.code == 1
                    assert "STORE_UNREACHABLE" in ran.errors or "KEEPER_STANDS_BY" in ran.errors
                assert "STORE_UNREACHABLE" in room.kmsctl("status").errors
                assert room.sign()
            finally:
                server.start()
            until_term(room, number + 2)
            assert stands_by(room) == ""
            assert [one["id"] for one in room.credentials()][-1] == first["id"]
            assert signs_with(room, room.rotated()["id"])
            assert len(room.credentials()) == number + 2
        assert keeper.poll() is None
    assert PASSWORD not in room.log()


def test_a_keeper_whose_session_is_ended_acts_again(
    rooms: tuple[KeyRoom, KeyRoom], server: Postgres
) -> None:
    room, _ = rooms
    with room.running():
        room.enrolled()
        server.terminate(database_of(room.store["url"]))
        until_term(room, 2)
        assert signs_with(room, room.rotated()["id"])


def test_a_keeper_starts_without_its_database(
    rooms: tuple[KeyRoom, KeyRoom], server: Postgres
) -> None:
    room, _ = rooms
    server.stop()
    try:
        with keeper_of(room) as keeper:
            until("it answers", lambda: "STORE_UNREACHABLE" in room.kmsctl("profiles").errors)
            server.start()
            until("it acts", lambda: stands_by(room) == "")
            assert keeper.poll() is None
    finally:
        server.ensure()


def test_a_password_that_is_refused_ends_the_keeper_for_a_person(
    rooms: tuple[KeyRoom, KeyRoom],
) -> None:
    room, _ = rooms
    Path(room.store["password"]).write_text("hunter2-hunter2")
    with keeper_of(room) as keeper:
        assert keeper.wait(30) == 4
    assert "STORE_LOGIN_REFUSED" in room.log()
    assert "hunter2" not in room.log()


def test_two_keepers_of_one_host_do_not_take_each_others_socket(
    rooms: tuple[KeyRoom, KeyRoom],
) -> None:
    room, _ = rooms
    with room.keeper() as first:
        with keeper_of(room) as second:
            assert second.wait(30) == 1
        assert "KEEPER_ALREADY_RUNNING" in room.log()
        assert room.kmsctl("profiles").code == 0
        assert first.poll() is None


def keeper_of(room: KeyRoom) -> AbstractContextManager[Popen[bytes]]:
    """A keeper that is not waited for."""
    return program(room.folder / "keeper.log", "kmsd", "--config", str(room.config), "keeper")
