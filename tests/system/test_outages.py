"""The outage matrix: everything kmsd depends on fails, one thing at a time, on real processes.

While an STI-AS signs without a pause and has each signature verified: none may fail, the operator
sees what is wrong and no more than that, and what was under way goes on when it is over. The rows
are those of kmsd/outages.md, which says the same to people.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kmsd.enrollment import birth_of
from kmsd.lab import Lab, running_lab
from kmsd.store import Store
from tests.postgres import PASSWORD, Postgres, postgres
from tests.system.clocked import Clock
from tests.system.disks import filled, needs_mount, small_disk
from tests.system.key_room import KeyRoom, Table
from tests.system.programs import program, until
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
PROFILES = {what: f"p{number}" for number, what in enumerate([*PASSES, *REFUSED], 1)}


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
    used = [token.x5u for token in steady.signed]
    change = used.index(new["x5u"])
    assert set(used[:change]) == {old["x5u"]}
    assert set(used[change:]) == {new["x5u"]}
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
        active = room.profile(profile)["active"]
        return bool(active and credential in ("", active["id"]))

    until(f"{profile} is active", is_active)


def _no_key_is_orphaned(room: KeyRoom) -> None:
    """What is on the token is what the store knows: no key more, and none less."""
    url = room.store.get("url") or f"sqlite:///{room.state}/kmsd.db"
    with Store.look(url, lambda: PASSWORD) as store:
        known = {one.key_id for one in store.credentials() if birth_of(one.state)}
        known |= {one.key_id for one in store.accounts() if one.birth}
    found = room.inventory()
    assert (found.ours, found.foreign) == (known, 0)
