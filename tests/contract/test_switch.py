"""The switch, on a real store, a real keyring and the locks of real signers' presence."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from kmsd import keyring, switch
from kmsd.errors import Unavailable
from kmsd.keyring import KeyringWriter
from kmsd.model import (
    Active,
    BirthRecord,
    Certificate,
    Credential,
    Failed,
    Issued,
    New,
    Published,
    Retired,
    Revocation,
    State,
)
from kmsd.presence import NOT_SERVING, TOO_MANY, Acknowledgement, Presence
from kmsd.ring import Snapshot
from kmsd.store import Store
from kmsd.switch import Switch, entry_of

BIRTH = BirthRecord("6b" * 16, "label", 5, b"spki", {}, "module", "kmsd", "0001")
CERTIFICATE = Certificate("PEM", "ca", "https://ca/o/1", "0a", "cd" * 32, 10, 20)


def credential(number: int, state: State, profile: str = "acme") -> Credential:
    return Credential(f"{number:016x}", profile, "1234", f"{number:032x}", number, state)


def published(number: int, profile: str = "acme") -> Credential:
    x5u = f"https://cr.example.org/{number}.pem"
    return credential(number, Published(BIRTH, CERTIFICATE, x5u), profile)


def active(number: int, profile: str = "acme") -> Credential:
    x5u = f"https://cr.example.org/{number}.pem"
    return credential(number, Active(BIRTH, CERTIFICATE, x5u, since=1, epoch=1), profile)


def retired(number: int) -> Credential:
    x5u = f"https://cr.example.org/{number}.pem"
    return credential(number, Retired(BIRTH, CERTIFICATE, x5u, since=1, destroy_at=2))


class Host:
    """A store, a keyring folder, and signers that say what they are told to say."""

    def __init__(self, folder: Path, store: Store, opened: ExitStack) -> None:
        self.folder = folder
        self.store = store
        self._opened = opened
        self._signers: dict[int, Presence] = {}

    def switch(self) -> Switch:
        """Of a keeper that just started."""
        return Switch(self.store, self.folder / "keyring", self.folder / "run")

    def says(self, index: int, epoch: int, *, unusable: tuple[str, ...] = ()) -> None:
        """A signer's word; the first one starts it."""
        if index not in self._signers:
            presence = Presence(self.folder / "run", index)
            self._signers[index] = self._opened.enter_context(presence)
        trouble = "The HSM has no such key." if unusable else ""
        self._signers[index].acknowledge(
            Acknowledgement(index, 1, epoch, 0, 0, 1, trouble, unusable)
        )

    def written(self) -> dict[str, str]:
        """Profile to credential, as signers read it."""
        return {one.profile: one.credential for one in self.snapshot().entries}

    def until_written(self) -> None:
        """Blocks until there is something in the keyring."""
        deadline = time.monotonic() + 10
        while not self.snapshot().entries:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def announced(self) -> dict[str, str]:
        """Profile to the credential that is coming, as signers read it."""
        return {one.profile: one.credential for one in self.snapshot().coming}

    def snapshot(self) -> Snapshot:
        return keyring.read(self.folder / "keyring")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Store.open(f"sqlite:///{tmp_path}/kmsd.db") as store, ExitStack() as opened:
        yield Host(tmp_path, store, opened)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "ACKNOWLEDGED_WITHIN", 0.1)


async def test_a_switch_is_written_and_done_without_signers(host: Host) -> None:
    one = host.switch()
    epoch = await one.activate(published(1))
    assert (epoch, one.epoch, host.snapshot().epoch) == (1, 1, 1)
    assert host.snapshot().entries == (entry_of(published(1)),)


async def test_every_live_signer_is_waited_for(host: Host) -> None:
    host.says(1, 0)
    host.says(2, 0)
    switching = asyncio.create_task(host.switch().activate(published(1)))
    await asyncio.to_thread(host.until_written)
    host.says(1, 1)
    await asyncio.sleep(0.1)
    assert not switching.done()
    host.says(2, 1)
    assert await switching == 1


async def test_signers_that_do_not_serve_yet_are_not_waited_for(host: Host) -> None:
    host.says(1, NOT_SERVING)
    assert await host.switch().activate(published(1)) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_signer_behind_is_named_and_asking_again_writes_nothing_new(host: Host) -> None:
    one = host.switch()
    host.says(3, 0)
    for _ in range(2):
        with pytest.raises(Unavailable, match="Signer 3 has not followed to epoch 1") as behind:
            await one.activate(published(1))
        assert behind.value.reason == "SIGNER_BEHIND"
        assert host.snapshot().epoch == 1
    host.says(3, 1)
    assert await one.activate(published(1)) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("unusable", [("acme",), TOO_MANY])
async def test_a_profile_is_not_active_before_every_signer_found_its_key(
    host: Host, unusable: tuple[str, ...]
) -> None:
    one = host.switch()
    host.says(1, 1)
    host.says(2, 1, unusable=unusable)
    with pytest.raises(Unavailable, match="Signer 2 cannot sign") as without:
        await one.activate(published(1))
    assert without.value.reason == "SIGNER_WITHOUT_KEY"
    host.says(2, 1, unusable=("other",))
    assert await one.activate(published(1)) == 1


async def test_withdrawing_takes_only_what_is_in_use(host: Host) -> None:
    one = host.switch()
    await one.activate(published(1))
    await one.withdraw(active(2))
    assert host.written() == {"acme": f"{1:016x}"}
    await one.withdraw(active(1))
    assert host.written() == {}
    epoch = one.epoch
    await one.withdraw(active(1))
    assert one.epoch == epoch


async def test_withdrawing_a_former_credential_spares_the_one_that_is_just_switched_to(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host.switch()
    await one.activate(published(1))
    next_epoch, begun, let = host.store.next_epoch, threading.Event(), threading.Event()

    def slow(*, after: int) -> int:
        begun.set()
        assert let.wait(10)
        return next_epoch(after=after)

    monkeypatch.setattr(host.store, "next_epoch", slow)
    switching = asyncio.create_task(one.activate(published(2)))
    await asyncio.to_thread(begun.wait, 10)
    withdrawing = asyncio.create_task(one.withdraw(active(1)))
    await asyncio.sleep(0)  # it has looked, where it looks before its turn
    let.set()
    await asyncio.gather(switching, withdrawing)
    assert host.written() == {"acme": f"{2:016x}"}


async def test_epochs_go_on_after_a_restart_and_after_a_lost_keyring(host: Host) -> None:
    await host.switch().activate(published(1))
    await host.switch().activate(published(2))
    (host.folder / "keyring").rename(host.folder / "lost")
    one = host.switch()
    assert one.epoch == 0
    assert await one.activate(published(3)) == 3


async def test_a_store_from_a_backup_does_not_repeat_epochs(host: Host) -> None:
    KeyringWriter(host.folder / "keyring").switch(41, [])
    assert await host.switch().activate(published(1)) == 42


async def test_the_store_says_what_is_signed_with(host: Host) -> None:
    one = host.switch()
    await one.activate(published(1, "gone"))
    await one.activate(published(2, "acme"))
    await host.switch().reconcile(
        [
            active(3, "acme"),
            active(4, "new"),
            credential(5, New(), "other"),
            credential(6, Issued(BIRTH, CERTIFICATE), "other"),
            retired(7),
        ]
    )
    assert host.written() == {"acme": f"{3:016x}", "new": f"{4:016x}"}


async def test_what_was_about_to_become_active_stays(host: Host) -> None:
    await host.switch().activate(published(2))
    epoch = host.snapshot().epoch
    for credentials in ([published(2), active(1)], [active(1), published(2)]):
        await host.switch().reconcile(credentials)
        assert host.written() == {"acme": f"{2:016x}"}
    assert host.snapshot().epoch == epoch


async def test_what_is_only_published_is_not_signed_with(host: Host) -> None:
    await host.switch().activate(published(1))
    await host.switch().reconcile([published(2), active(1)])
    assert host.written() == {"acme": f"{1:016x}"}


async def test_a_keyring_in_line_is_not_written_again(host: Host) -> None:
    await host.switch().reconcile([active(1)])
    files = sorted((host.folder / "keyring").iterdir())
    await host.switch().reconcile([active(1)])
    assert sorted((host.folder / "keyring").iterdir()) == files


async def test_a_keyring_that_cannot_be_written_leaves_all_as_before(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host.switch()
    await one.activate(published(1))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _disk_full)
        with pytest.raises(Unavailable) as refused:
            await one.activate(published(2))
    assert refused.value.reason == "KEYRING_NOT_WRITTEN"
    assert host.written() == {"acme": f"{1:016x}"}
    assert one.epoch == 1
    await one.activate(published(2))
    assert host.written() == {"acme": f"{2:016x}"}


async def test_a_caller_who_goes_does_not_mix_two_switches(host: Host) -> None:
    """The thread that writes goes on when whoever asked for it is cancelled."""
    one = host.switch()
    for number in range(1, 20):
        going = asyncio.create_task(one.activate(published(number, f"p{number}")))
        await asyncio.sleep(0)
        going.cancel()
    await asyncio.gather(*(one.activate(published(n, f"p{n}")) for n in range(20, 24)))
    assert {f"p{n}": f"{n:016x}" for n in range(20, 24)}.items() <= host.written().items()


def test_only_what_has_a_public_chain_can_be_signed_with() -> None:
    for one in (credential(1, New()), retired(1), credential(1, Issued(BIRTH, CERTIFICATE))):
        with pytest.raises(ValueError, match="cannot sign"):
            entry_of(one)
    assert entry_of(published(1)) == entry_of(active(1))
    assert entry_of(replace(active(1), profile="b")).profile == "b"


def _disk_full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


async def test_a_revoked_credential_is_not_brought_back_by_a_restart(host: Host) -> None:
    await host.switch().reconcile([active(1)])
    revoked = replace(active(1), revocation=Revocation(at=5, reason=1))
    await host.switch().reconcile([revoked])
    assert keyring.read(host.folder / "keyring").entries == ()


# --- what is coming


async def test_what_is_published_is_announced_under_the_present_epoch(host: Host) -> None:
    one = host.switch()
    await one.activate(published(1))
    host.says(1, 0)  # it is behind, and nobody waits for it
    await one.announce(published(2))
    assert host.announced() == {"acme": f"{2:016x}"}
    assert host.snapshot().coming == (entry_of(published(2)).public(),)
    assert (one.epoch, host.snapshot().epoch, host.written()) == (1, 1, {"acme": f"{1:016x}"})
    files = sorted((host.folder / "keyring").iterdir())
    await one.announce(published(2))
    assert sorted((host.folder / "keyring").iterdir()) == files


async def test_announcing_does_without_the_database(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host.switch()
    monkeypatch.setattr(host.store, "next_epoch", None)
    await one.announce(published(1))
    assert host.announced() == {"acme": f"{1:016x}"}


async def test_what_becomes_active_is_not_coming_any_more(host: Host) -> None:
    one = host.switch()
    await one.announce(published(1))
    await one.activate(published(1))
    await one.announce(active(1))
    await one.announce(published(1))  # told late
    assert (host.announced(), host.written()) == ({}, {"acme": f"{1:016x}"})


async def test_what_failed_is_called_off_and_what_is_another_s_stays(host: Host) -> None:
    one = host.switch()
    await one.announce(published(1))
    await one.announce(failed(2))
    assert host.announced() == {"acme": f"{1:016x}"}
    await one.announce(failed(1))
    assert host.announced() == {}


async def test_a_rehearsal_and_what_is_revoked_are_not_announced(host: Host) -> None:
    one = host.switch()
    await one.announce(replace(published(1), rehearsal=True))
    await one.announce(replace(published(1), revocation=Revocation(at=5, reason=1)))
    await one.announce(credential(1, Issued(BIRTH, CERTIFICATE)))
    assert host.announced() == {}
    assert not list((host.folder / "keyring").iterdir())


async def test_what_could_not_be_announced_is_told_with_what_is_written_next(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host.switch()
    await one.announce(published(1, "other"))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _disk_full)
        await one.announce(published(2))
        await one.announce(failed(1, "other"))
    assert host.announced() == {"other": f"{1:016x}"}
    await one.activate(published(3, "third"))
    assert host.announced() == {"acme": f"{2:016x}"}
    await one.announce(published(2))
    assert host.snapshot().note == 0


async def test_what_could_not_be_announced_and_is_active_meanwhile_is_not_told(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host.switch()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _disk_full)
        await one.announce(published(1))
    await one.activate(published(1))
    await one.announce(published(5, "other"))
    assert host.announced() == {"other": f"{5:016x}"}


async def test_a_keeper_that_starts_announces_what_the_one_before_had_no_time_to(
    host: Host,
) -> None:
    one = host.switch()
    await one.activate(published(1))
    await one.announce(published(8, "gone"))
    restarted = host.switch()
    await restarted.reconcile([published(2), active(1)])
    assert host.announced() == {"acme": f"{2:016x}"}
    assert host.written() == {"acme": f"{1:016x}"}
    assert restarted.epoch == 1
    files = sorted((host.folder / "keyring").iterdir())
    await host.switch().reconcile([published(2), active(1)])
    assert sorted((host.folder / "keyring").iterdir()) == files


async def test_of_two_that_come_the_one_that_was_announced_stays(host: Host) -> None:
    one = host.switch()
    await one.announce(published(3))
    await host.switch().reconcile([published(2), published(3), active(1)])
    assert host.announced() == {"acme": f"{3:016x}"}


async def test_a_keeper_that_stands_by_announces_to_its_own_signers(host: Host) -> None:
    one = host.switch()
    await one.follow([active(1), published(2)])
    assert (host.announced(), host.written()) == ({"acme": f"{2:016x}"}, {"acme": f"{1:016x}"})
    await one.follow([active(2), published(3)])
    assert (host.announced(), host.written()) == ({"acme": f"{3:016x}"}, {"acme": f"{2:016x}"})
    await one.follow([active(2)])
    assert (host.announced(), one.epoch) == ({}, 2)


# --- a keyring that was spoiled


@pytest.mark.parametrize("in_line", [True, False])
async def test_a_keeper_that_starts_on_a_spoiled_keyring_writes_it_anew(
    host: Host, *, in_line: bool
) -> None:
    one = host.switch()
    await one.activate(published(1))
    await one.activate(published(2, "other"))
    [_, newest] = sorted((host.folder / "keyring").iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    credentials = [active(1)] if in_line else [active(1), active(2, "other")]
    restarted = host.switch()
    await restarted.reconcile(credentials)
    assert host.written() == {one.profile: one.id for one in credentials}
    assert host.snapshot().epoch == 3


@pytest.mark.usefixtures("impatient")
async def test_asking_again_mends_what_a_signer_could_not_read(host: Host) -> None:
    one = host.switch()
    host.says(1, 0)
    with pytest.raises(Unavailable):
        await one.activate(published(1))
    [delta] = (host.folder / "keyring").iterdir()
    delta.write_bytes(b"")
    with pytest.raises(Unavailable) as behind:
        await one.activate(published(1))
    assert behind.value.reason == "SIGNER_BEHIND"
    assert (host.snapshot().epoch, host.written()) == (1, {"acme": f"{1:016x}"})


def failed(number: int, profile: str = "acme") -> Credential:
    return credential(number, Failed("published", 5, "VERIFICATION_FAILED", "No."), profile)


async def test_an_epoch_that_the_keyring_lost_is_followed_by_a_new_one(host: Host) -> None:
    """The newest file is gone without a trace; a signer may still sign with what was in it."""
    one = host.switch()
    await one.activate(published(1))
    await one.activate(published(2))
    newest = max((host.folder / "keyring").iterdir())
    newest.unlink()
    await host.switch().reconcile([active(1), published(2)])
    assert host.written() == {"acme": f"{1:016x}"}
    assert host.snapshot().epoch == 3
