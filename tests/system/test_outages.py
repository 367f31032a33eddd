"""The outage matrix: everything kmsd depends on fails, one thing at a time, on real processes.

While an STI-AS signs without a pause and has each signature verified: none may fail, the operator
sees what is wrong and no more than that, and what was under way goes on when it is over. The rows
are those of kmsd/outages.md, which says the same to people.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kmsd.enrollment import birth_of
from kmsd.lab import Lab, running_lab
from kmsd.store import Store
from tests.postgres import PASSWORD, postgres
from tests.system.clocked import Clock
from tests.system.disks import filled, needs_mount, small_disk
from tests.system.key_room import KeyRoom, Table
from tests.system.programs import until
from tests.system.road import Road, road
from tests.system.steady import Steady, signing

PATIENCE = 1.0
"""Seconds for one request to STI-PA or STI-CA."""
MINUTE, HOUR, DAY = 60, 3600, 86_400
TABLE = Path(__file__).parents[2] / "kmsd" / "outages.md"


@dataclass(frozen=True)
class Outage:
    """reason: what the operator is told. switches: of the lab. closed: the way to the STI-PA (pa)
    or the STI-CA (ca), where nobody listens then. left_alone: seconds, at most, before it is asked
    again when it is back.
    """

    reason: str
    switches: Table = field(default_factory=dict)
    closed: str = ""
    left_alone: float = 10


PASSES = {
    "STI-PA is down": Outage("STI_PA_UNREACHABLE", closed="pa"),
    "STI-PA answers 5xx": Outage("STI_PA_UNAVAILABLE", {"pa": "error"}),
    "STI-PA stalls": Outage("STI_PA_TIMEOUT", {"pa": "stall"}),
    "STI-PA resets connections": Outage("STI_PA_CONNECTION_RESET", {"pa": "reset"}),
    "STI-PA limits the rate": Outage("STI_PA_RATE_LIMITED", {"pa": "rate_limited"}),
    "STI-CA is down": Outage("ACME_UNREACHABLE", closed="ca"),
    "STI-CA answers 5xx": Outage("ACME_SERVER_INTERNAL", {"ca": "error"}),
    "STI-CA stalls": Outage("ACME_TIMEOUT", {"ca": "stall", "fault_path": "/new-order"}),
    "STI-CA resets connections": Outage("ACME_CONNECTION_LOST", {"ca": "reset"}),
    "STI-CA limits the rate": Outage(
        "ACME_RATE_LIMITED", {"order": "rate_limited"}, left_alone=2 * MINUTE
    ),
    "STI-CA rejects every nonce": Outage("ACME_NONCE_BUDGET", {"bad_nonce_share": 1.0}),
    "STI-CR is down": Outage("X5U_UNREACHABLE", {"cr": "reset"}),
    "STI-CR serves other bytes": Outage("X5U_DIFFERENT", {"cr": "corrupt"}),
}
"""What is over some time, and then forgotten."""
REFUSED = {
    "Chain leads to no trusted STI-CA": "foreign_ca",
    "Chain is for another key": "other_key",
    "Certificate has expired on arrival": "expired",
}
"""Chains that nobody should sign with, as the lab's switch calls them."""
OLDER_LIST = "List of STI-CAs is older than the last one"
STORE_FULL = "Disk of the store is full"
REPOSITORY_FULL = "Disk of the repository is full"
CLOCK_AHEAD = "Clock jumps ahead by a day"
CLOCK_BEHIND = "Clock jumps back by a day"
NO_DATABASE = "Database is gone"

IN_ONE_ROOM = [*PASSES, *REFUSED, OLDER_LIST, REPOSITORY_FULL]
PROFILES = {what: f"p{number}" for number, what in enumerate(IN_ONE_ROOM, 1)}
"""Of the room they share: a profile for each row."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outages")


@pytest.fixture(scope="module")
def clock(folder: Path) -> Clock:
    return Clock(folder / "clock")


@pytest.fixture(scope="module")
def shared_lab(folder: Path, clock: Clock) -> Iterator[Lab]:
    spcs = [f"{number}A" for number in range(101, 101 + len(PROFILES))]
    with running_lab(
        folder / "lab",
        spcs=spcs,
        calm=True,
        clock=clock.world,
        retry_after=0,
        stall_seconds=PATIENCE + 1,
    ) as lab:
        yield lab


@pytest.fixture(scope="module")
def ways(shared_lab: Lab) -> Iterator[dict[str, Road]]:
    """To the STI-PA and to the STI-CA of the rows in which nobody listens there."""
    port = urlsplit(shared_lab.facts.pa_url).port
    assert port
    with road(port) as pa, road(port) as ca:
        yield {"pa": pa, "ca": ca}


@pytest.fixture(scope="module")
def room(folder: Path, clock: Clock, shared_lab: Lab, ways: dict[str, Road]) -> Iterator[KeyRoom]:
    """A profile and an STI-CA for each row, so that none meets what another one left behind."""
    facts = shared_lab.facts
    quick: Table = {"timeout": PATIENCE, "poll_limit": 5.0}
    issuers = {f"ca-{profile}": dict(quick) for profile in PROFILES.values()}
    profiles: dict[str, Table] = {
        profile: {"issuers": [f"ca-{profile}"]} for profile in PROFILES.values()
    }
    authorities: dict[str, Table] = {"lab": {"timeout": PATIENCE}}
    for what, outage in PASSES.items():
        profile = PROFILES[what]
        if outage.closed == "ca":
            issuers[f"ca-{profile}"]["directory"] = ways["ca"].leads(facts.ca_directory)
        elif outage.closed == "pa":
            authorities["other"] = {
                "timeout": PATIENCE,
                "url": ways["pa"].leads(facts.pa_url),
                "crl_url": facts.crl_url,
            }
            profiles[profile]["authority"] = "other"
    room = KeyRoom(
        folder / "room",
        shared_lab,
        profiles=profiles,
        issuers=issuers,
        authorities=authorities,
        kmsd=clock.program,
    )
    with room.running():
        for profile in profiles:
            room.begun(profile, "enroll")
        for profile in profiles:
            _until_active(room, profile)
        yield room


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    yield shared_lab
    shared_lab.reset()


@pytest.mark.outage_matrix(*PASSES)
@pytest.mark.parametrize("what", PASSES)
def test_signing_goes_on_and_the_renewal_waits_until_it_is_over(
    what: str, room: KeyRoom, lab: Lab, clock: Clock, ways: dict[str, Road]
) -> None:
    outage, profile = PASSES[what], PROFILES[what]
    certificates = lab.counts()["certificates"]
    with _renewal_survives(room, profile) as steady:
        lab.set(**outage.switches)
        if outage.closed:
            ways[outage.closed].close()
        try:
            room.begun(profile)
            coming = _is_seen(room, profile, outage.reason)
            assert coming["trouble"]["retry_at"]
            steady.still_signs()
        finally:
            lab.reset()
            for way in ways.values():
                way.open()
        clock.passes(outage.left_alone)
        _until_active(room, profile, coming["id"])
    assert lab.counts()["certificates"] == certificates + 1


@pytest.mark.outage_matrix(*REFUSED)
@pytest.mark.parametrize("what", REFUSED)
def test_signing_goes_on_and_a_chain_nobody_should_sign_with_is_never_used(
    what: str, room: KeyRoom, lab: Lab
) -> None:
    profile = PROFILES[what]
    with _renewal_survives(room, profile) as steady:
        lab.set(chain=REFUSED[what])
        failed = room.kmsctl("rotate", profile)
        assert (failed.code, failed.last["reason"]) == (4, "CHAIN_NOT_ACCEPTED")
        assert "Show it to the STI-CA" in failed.last["next_step"]
        assert Path(failed.last["metadata"]["artefact"]).stat().st_size
        steady.still_signs()
        lab.reset()
        room.rotated(profile)


@pytest.mark.outage_matrix(OLDER_LIST)
def test_the_last_good_list_of_sti_cas_is_gone_by_while_an_older_one_is_offered(
    room: KeyRoom, lab: Lab, clock: Clock
) -> None:
    profile = PROFILES[OLDER_LIST]
    with _renewal_survives(room, profile):
        good = room.status()["trust"][0]
        lab.set(ca_list="lower_sequence")
        clock.passes(7 * HOUR)  # the next one is due
        room.rotated(profile)
        status = room.kmsctl("status")
        assert status.code == 3
        (alarm,) = status.last["alarms"]
        assert (alarm["subject"], alarm["reason"]) == ("lab", "TRUST_REFRESH_FAILED")
        trust = status.last["trust"][0]
        assert "sequence" in trust["trouble"]
        assert (trust["sequence"], trust["roots"]) == (good["sequence"], good["roots"])
        lab.reset()
        clock.passes(6 * MINUTE)
        room.rotated(profile)


@needs_mount
@pytest.mark.outage_matrix(REPOSITORY_FULL)
def test_nothing_is_published_on_a_full_disk_until_there_is_room(
    room: KeyRoom, lab: Lab, clock: Clock
) -> None:
    profile, chains = PROFILES[REPOSITORY_FULL], Path(lab.facts.cr_dir)
    certificates = lab.counts()["certificates"]
    with _renewal_survives(room, profile) as steady:
        with small_disk(chains), filled(chains):
            room.begun(profile)
            coming = _is_seen(room, profile, "REPOSITORY_DISK_FULL")
            assert coming["trouble"]["next_step"]
            steady.still_signs()
        clock.passes(10)
        _until_active(room, profile, coming["id"])
    assert lab.counts()["certificates"] == certificates + 1


@needs_mount
@pytest.mark.outage_matrix(STORE_FULL)
def test_what_could_not_be_stored_is_done_again_when_there_is_room(
    folder: Path, lab: Lab, clock: Clock
) -> None:
    """What the operator sees of it is in the log: a full disk stores no trouble."""
    state = folder / "small"
    with small_disk(state):
        room = KeyRoom(
            folder / "small-room", lab, profiles={"acme": {}}, state=state, kmsd=clock.program
        )
        with room.running():
            room.enrolled()
            certificates = lab.counts()["certificates"]
            with _renewal_survives(room, "acme") as steady:
                lab.set(cr="slow", fault_times=1, stall_seconds=0.7)
                requests = len(lab.requests())
                room.begun()
                until("it is fetched back", lambda: _asked(lab, "/cr/", requests))
                coming = room.profile()["coming"]
                with filled(state):
                    until("it is told", lambda: "reason=STORE_DISK_FULL" in room.log())
                    steady.still_signs()
                lab.reset()
                _until_active(room, "acme", coming["id"])
            assert lab.counts()["certificates"] == certificates + 1


@pytest.fixture(scope="module")
def aged(folder: Path) -> Iterator[tuple[KeyRoom, Clock]]:
    """A room whose certificates are three days old."""
    clock = Clock(folder / "aging")
    clock.passes(-3 * DAY)
    with running_lab(
        folder / "aged-lab", spcs=["1234", "567A"], calm=True, clock=clock.world, retry_after=0
    ) as lab:
        room = KeyRoom(
            folder / "aged", lab, profiles={"ahead": {}, "behind": {}}, kmsd=clock.program
        )
        with room.signer():
            with room.keeper():
                room.enrolled("ahead")
                room.enrolled("behind")
            clock.passes(3 * DAY)
            with room.keeper():
                until("all is well", lambda: room.status()["condition"] == "ok")
                yield room, clock
                clock.jumps(0)


@pytest.mark.outage_matrix(CLOCK_AHEAD)
def test_signing_goes_on_when_the_clock_jumps_ahead_and_back(
    aged: tuple[KeyRoom, Clock],
) -> None:
    room, clock = aged
    with _renewal_survives(room, "ahead") as steady:
        clock.jumps(DAY)
        steady.still_signs()
        assert re.search(r"86(399|400|401) s ahead", _checked(room))
        failed = room.kmsctl("rotate", "ahead")
        assert (failed.code, failed.last["reason"]) == (4, "SPC_TOKEN_REJECTED")
        assert {"TRUST_LIST_EXPIRED", "TRUST_CRL_EXPIRED"} <= _alarms(room)
        # What was put off by that clock does not wait until its time comes again.
        room.lab.set(pa="error")
        room.begun("ahead")
        until("it waits", lambda: room.trouble("ahead").get("reason") == "STI_PA_UNAVAILABLE")
        coming = room.profile("ahead")["coming"]
        steady.still_signs()
        room.lab.reset()
        clock.jumps(0)
        _until_active(room, "ahead", coming["id"])


@pytest.mark.outage_matrix(CLOCK_BEHIND)
def test_signing_goes_on_when_the_clock_jumps_back_and_ahead(
    aged: tuple[KeyRoom, Clock],
) -> None:
    room, clock = aged
    with _renewal_survives(room, "behind") as steady:
        clock.jumps(-DAY)
        steady.still_signs()
        assert re.search(r"86(399|400|401) s behind", _checked(room))
        failed = room.kmsctl("rotate", "behind")
        assert (failed.code, failed.last["reason"]) == (4, "CHAIN_NOT_ACCEPTED")
        assert "is valid from" in failed.last["message"]
        assert "TRUST_REFRESH_FAILED" in _alarms(room)  # of a CRL from the future
        steady.still_signs()
        clock.jumps(0)
        room.rotated("behind")


@pytest.mark.outage_matrix(NO_DATABASE)
def test_signing_goes_on_without_the_database_and_the_renewal_when_it_is_back(
    folder: Path, lab: Lab, clock: Clock
) -> None:
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    with postgres() as server:
        store = {"url": server.database(tcp=True), "password": str(password)}
        room = KeyRoom(
            folder / "shared", lab, profiles={"acme": {}}, store=store, kmsd=clock.program
        )
        with room.running():
            room.enrolled()
            certificates = lab.counts()["certificates"]
            with _renewal_survives(room, "acme") as steady:
                lab.set(ca="slow", fault_path="/new-order", fault_times=1, stall_seconds=0.7)
                requests = len(lab.requests())
                room.begun()
                until("it is there", lambda: _asked(lab, "/new-order", requests))
                coming = room.profile()["coming"]
                server.stop()
                try:
                    until("it is told", lambda: "STORE_UNREACHABLE" in room.kmsctl("status").errors)
                    steady.still_signs()
                finally:
                    server.start()
                _until_active(room, "acme", coming["id"])
            assert lab.counts()["certificates"] == certificates + 1


def test_every_row_is_in_the_docs_and_every_row_of_the_docs_is_held_here(
    request: pytest.FixtureRequest,
) -> None:
    here = [
        row
        for test in vars(request.module).values()
        for mark in getattr(test, "pytestmark", ())
        if mark.name == "outage_matrix"
        for row in mark.args
    ]
    cells = [
        line.strip("|").split("|") for line in TABLE.read_text().splitlines() if line[:1] == "|"
    ]
    table = {row[0].strip(): row for row in cells[2:]}
    assert list(table) == here
    for what, outage in PASSES.items():
        assert f"`{outage.reason}`" in table[what][2]


def _alarms(room: KeyRoom) -> set[str]:
    return {one["reason"] for one in room.status()["alarms"]}


def _asked(lab: Lab, path: str, since: int) -> bool:
    """Whether something was asked for after so many requests."""
    return any(path in request["path"] for request in lab.requests()[since:])


def _checked(room: KeyRoom) -> str:
    """What `kmsd check` says on the host."""
    words = (*room.kmsd, "--config", str(room.config), "check")
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert done.returncode == 4
    return done.stdout


@contextmanager
def _renewal_survives(room: KeyRoom, profile: str) -> Iterator[Steady]:
    """While an STI-AS signs for the profile, whatever is done inside, and all of it counts: with
    the old credential first and with a new one in the end, and nothing is left over."""
    old = room.profile(profile)["active"]
    listed = {one["id"] for one in room.credentials("--all")}
    with signing(room, profile) as steady:
        yield steady
        new = room.profile(profile)["active"]
        assert new["id"] != old["id"]
        steady.signs_with(new["x5u"])
    used = [x5u for x5u, _ in groupby(token.x5u for token in steady.signed)]
    assert (used[0], used[-1]) == (old["x5u"], new["x5u"])
    assert len(used) == len(set(used))
    assert room.state_of(old["id"]) == "retired"
    assert listed < {one["id"] for one in room.credentials("--all")}
    until("all is well", lambda: room.status()["condition"] == "ok")
    _no_key_is_orphaned(room)


def _is_seen(room: KeyRoom, profile: str, reason: str) -> Table:
    """The operator is told the reason, where to look and no other thing; what is coming."""
    until(f"{reason} is told", lambda: room.trouble(profile).get("reason") == reason)
    trouble = room.trouble(profile)
    assert trouble["message"].endswith(".")
    status = room.kmsctl("status")
    assert status.code in (3, 4)
    assert {(one["subject"], one["reason"]) for one in status.last["alarms"]} == {(profile, reason)}
    coming: Table = room.profile(profile)["coming"]
    return coming


def _until_active(room: KeyRoom, profile: str, credential: str = "") -> None:
    """Waits until the profile signs with that credential, or with any."""

    def is_active() -> bool:
        ran = room.kmsctl("profiles")
        if ran.code:  # the store is not back yet
            return False
        active = next(one for one in ran.last["profiles"] if one["name"] == profile)["active"]
        return bool(active and credential in ("", active["id"]))

    until(f"{profile} signs with what was coming", is_active)


def _no_key_is_orphaned(room: KeyRoom) -> None:
    """What is on the token is what the store knows: no key more, and none less."""
    url = room.store.get("url") or f"sqlite:///{room.state}/kmsd.db"
    with Store.look(url, lambda: PASSWORD) as store:
        known = {one.key_id for one in store.credentials() if birth_of(one.state)}
        known |= {one.key_id for one in store.accounts() if one.birth}
    found = room.inventory()
    assert found.ours == known
    assert found.foreign == 0
