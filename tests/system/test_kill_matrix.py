"""The keeper killed (kill -9) before and after everything it does for a credential, and started
again, while a client signs throughout.

After each of these deaths the same must hold: the credential becomes active and public without
a person; the token holds the keys that the store knows of, and no others; there is one
certificate for one enrollment; whatever the client was given verifies, and it was given
all that it asked for.

What a death may cost is known, and is looked for too. One that falls between the STI-CA's making
of an order and the store's knowing its URL leaves that order behind: nobody can find it again
(RFC 8555 section 7.1.2.1 lets servers leave it out of lists), so another one is made, and the
first one expires at the STI-CA, never authorized, without a certificate. A second certificate
comes of no death at all: the CSR goes to an order whose URL is stored, and an order takes one CSR.
(Where there is another STI-CA to turn to, one that was given up on with the CSR in its hands may
issue yet; that takes an outage, and no death makes it worse.)
"""

import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmsd import config, keyring
from kmsd.errors import Unavailable
from kmsd.lab import running_lab
from kmsd.model import Active, Credential
from kmsd.store import Store
from tests.contract.tokens import read_identity
from tests.system import judges
from tests.system.caller import Caller, calling
from tests.system.key_room import IN_A_MOMENT, KeyRoom
from tests.system.killed import Keepers, nursery
from tests.system.programs import program, until

pytestmark = pytest.mark.kill_matrix

CREDENTIAL = (
    "store: New",
    *("GenerateKey", "HSM: passport key made", "store: Keyed"),
    *("PlaceOrder", "STI-PA: SPC token", "STI-CA: newOrder", "store: Ordered"),
    *("Authorize", "STI-CA: challenge", "store: Authorized"),
    *("Finalize", "STI-CA: finalize", "store: Finalizing"),
    *("Collect", "STI-CA: certificate", "store: Issued"),
    *("Publish", "repository: chain", "repository: file", "store: Published"),
    *("keyring: announcement", "keyring: delta", "keyring: snapshot"),
    *("Activate", "store: epoch", "keyring: switch", "keyring: delta 2", "keyring: snapshot 2"),
    "store: Active",
    *("DestroyKey", "HSM: key destroyed", "store: Destroyed"),
)
"""Everything a keeper does for a credential, in this order; the last three for the one before."""
ACCOUNT = (
    "store: account",
    *("HSM: account key made", "store: account 2", "STI-CA: newAccount", "store: account 3"),
)
"""What it does for the first one besides."""
LOOKS = {"STI-CA: order", "STI-CA: authorization"}
"""Passages that change nothing anywhere: they only ask."""
ACTIONS = tuple(name for name in CREDENTIAL if ":" not in name and name != "DestroyKey")


def points(names: tuple[str, ...]) -> list[str]:
    """Both sides of each."""
    return [f"{side} {name}" for name in names for side in ("before", "after")]


ROTATION = points(CREDENTIAL)
ENROLLMENT = points(ACTIONS + ACCOUNT)
FORGOTTEN_ORDER = ("after STI-CA: newOrder", "after PlaceOrder", "before store: Ordered")
"""Where an order is left behind at the STI-CA."""
NOT_BEGUN = ("before store: New",)
"""Where nothing was begun yet: who asked was not answered, and asks again."""
PROFILES = {point: f"p{number}" for number, point in enumerate(ENROLLMENT)}


@dataclass
class Host:
    """One deployment for the whole matrix: its signers live, its keepers die."""

    room: KeyRoom
    keyring: Path
    keepers: Keepers
    caller: Caller
    store: Store

    def ensure_keeper(self) -> None:
        """There is a keeper, and it answers."""
        if self.keepers.pid == 0:
            self.keepers.start()
        until("the keeper answers", lambda: listens(f"{self.room.run}/keeper.sock"))

    def begin(self, verb: str, profile: str) -> bool:
        """Asks for a new credential; whether the keeper lived to say that it is begun."""
        with suppress(Unavailable):
            self.room.begun(profile, verb)
            return True
        return False

    def credentials(self, profile: str) -> tuple[Credential, ...]:
        """All that were ever begun, newest first, those without a key too."""
        return self.store.credentials(profile, include_destroyed=True)

    def settled(self, profile: str, before: tuple[Credential, ...] = ()) -> Credential:
        """Waits until one that is not of those before is active, and no other one has a key."""
        old = {one.id for one in before}

        def at_rest() -> bool:
            left = self.store.credentials(profile)
            return [type(one.state) for one in left] == [Active] and left[0].id not in old

        try:
            until(f"{profile} is at rest", at_rest)
        except AssertionError as error:  # seldom, and hard to make happen again
            signers = (self.room.acknowledged(index) for index in (1, 2))
            raise AssertionError(self.room.log()[-4000:], *signers) from error
        active = self.store.active(profile)
        assert active is not None
        return active

    def known_keys(self) -> set[str]:
        """The CKA_IDs of what the store knows, of accounts too."""
        keys = {one.key_id for one in self.store.credentials()}
        return keys | {account.key_id for account in self.store.accounts()}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("killed")
    profiles = ["acme", "plain", *PROFILES.values()]
    spcs = [f"{number}A" for number in range(100, 100 + len(profiles))]
    with running_lab(folder / "lab", spcs=spcs, calm=True) as lab:
        lab.set(retry_after=0)
        policy = {"policy": {"hold_key_days": IN_A_MOMENT}}
        room = KeyRoom(folder / "room", lab, profiles=dict.fromkeys(profiles, policy))
        with (
            room.signer(1),
            room.signer(2),
            nursery(room.config, room.folder) as keepers,
            calling(room) as caller,
        ):
            keepers.start()
            until("the keeper answers", lambda: room.kmsctl("profiles").code == 0)
            room.enrolled("acme")
            for index in (1, 2):
                room.until_serving(index)
            caller.calls(50)
            read = config.load(room.config)
            with Store.look(read.store.url) as store:
                yield Host(room, Path(read.keyring), keepers, caller, store)


def test_the_matrix_names_everything_a_keeper_does_for_a_credential(host: Host) -> None:
    host.ensure_keeper()
    passed: set[str] = set()
    for verb in ("enroll", "rotate"):
        before = host.credentials("plain")
        host.keepers.arm(f"never: {verb}")
        assert host.begin(verb, "plain")
        host.settled("plain", before)
        passed |= set(host.keepers.passed())
    changing = {name for name in passed if name.rstrip(" 0123456789") not in LOOKS}
    assert changing == {*CREDENTIAL, *ACCOUNT}


@pytest.mark.parametrize("point", ENROLLMENT)
def test_an_enrollment_survives_the_keepers_death(host: Host, point: str) -> None:
    dies_and_converges(host, "enroll", PROFILES[point], point)


@pytest.mark.parametrize("point", ROTATION)
def test_a_rotation_survives_the_keepers_death(host: Host, point: str) -> None:
    dies_and_converges(host, "rotate", "acme", point)


def test_a_second_keeper_of_a_store_changes_nothing_and_begins_when_the_first_is_dead(
    host: Host,
) -> None:
    """With a folder and a socket of its own, so that nothing but the store is in its way."""
    host.ensure_keeper()
    host.keepers.arm("never")
    first = host.room
    second = KeyRoom(
        first.folder / "second", first.lab, shared_token=first.token, state=first.state
    )
    words = ("kmsd", "--config", str(second.config), "keeper")
    with program(second.folder / "keeper.log", *words) as refused:
        assert refused.wait(30) == 1
    assert f"process {host.keepers.pid}" in second.log()
    assert "KEEPER_ALREADY_RUNNING" in second.log()
    host.keepers.kill()
    with second.keeper():
        x5u = second.rotated()["x5u"]
        until("the signers follow", lambda: read_identity(first.sign()).x5u == x5u)


def dies_and_converges(host: Host, verb: str, profile: str, point: str) -> None:
    """The whole of one death: everything above holds afterwards."""
    room, lab = host.room, host.room.lab
    host.ensure_keeper()
    counts, credentials = lab.counts(), host.credentials(profile)
    host.keepers.arm(point)
    begun = host.begin(verb, profile)
    assert host.keepers.until_dead() == -signal.SIGKILL
    stored = len(host.credentials(profile)) - len(credentials)
    assert stored == (point not in NOT_BEGUN)
    assert stored or not begun
    host.ensure_keeper()
    if not stored:
        assert host.begin(verb, profile)

    active = host.settled(profile, credentials)
    assert len(host.credentials(profile)) == len(credentials) + 1
    made = {name: number - counts[name] for name, number in lab.counts().items()}
    assert made["certificates"] == 1
    assert made["orders"] == (2 if point in FORGOTTEN_ORDER else 1)
    assert made["accounts"] == (verb == "enroll")
    assert room.inventory().ours == host.known_keys()
    nothing_lies_about(host)
    signs_with(host, profile, active)


def signs_with(host: Host, profile: str, active: Credential) -> None:
    """The signers do, others can verify it, and the client never had to wait for it."""
    assert isinstance(active.state, Active)
    room, x5u = host.room, active.state.x5u
    entries = {one.profile: one for one in keyring.read(host.keyring).entries}
    assert entries[profile].credential == active.id
    identity = room.sign(profile)
    assert read_identity(identity).x5u == x5u
    judges.joserfc_reads(identity, judges.fetch(room.lab, x5u).text)
    tally = host.caller.tally()
    assert (tally.failed, tally.why) == (0, [])
    assert tally.signed


def nothing_lies_about(host: Host) -> None:
    """No half-written file where others read. (A draft of the repository, whose name begins with
    a dot, is served to nobody.)"""
    assert {path.suffix for path in host.keyring.iterdir()} == {".json"}
    chains = Path(host.room.lab.facts.cr_dir).iterdir()
    assert {path.suffix for path in chains if not path.name.startswith(".")} == {".pem"}


def listens(path: str) -> bool:
    """Whether somebody does. The socket of a keeper that was killed is still there."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(path) == 0
