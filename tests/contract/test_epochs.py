"""Whatever happens in whatever order, key, chain and x5u of a signer are of one credential.

A keeper's switch on a real keyring folder, signers that follow it when they please, and readers of
their watches. The keeper dies in the middle of a write, keys reach a signer's HSM late, files are
torn or lost, signers start anew, readers go from one to another.
"""

import asyncio
import base64
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from kmsapi.v1.signing_pb2 import CredentialEvent
from kmsd_client.answers import ActiveCredential, change_of
from kmsd_client.watching import Resync, Told
from msgspec.structs import replace

from kmsd import keyring, sealed, switch
from kmsd.enrollment import birth_of
from kmsd.errors import KmsdError, Misconfigured, NotFound
from kmsd.keyring import KeyringReader
from kmsd.lanes import Lanes
from kmsd.live import Live
from kmsd.model import (
    Active,
    BirthRecord,
    Certificate,
    Credential,
    Failed,
    Published,
    Retired,
    Revocation,
)
from kmsd.ring import Entry, Snapshot
from kmsd.store import Store
from kmsd.switch import Switch, entry_of, is_coming
from kmsd.watching import events

PROFILES = ("ash", "birch")
SIGNERS = (0, 1)
KILLED = st.sampled_from([0, 0, 0, 1, 2, 3, 4])
"""At which write the keeper dies: 0 at none, 1 before and 2 after the first, 3 and 4 likewise at
the second, which folds."""
R = TypeVar("R")


class Killed(BaseException):
    """The keeper's process is gone."""


class Epochs:
    """All that a switch asks a store for."""

    def __init__(self) -> None:
        self._last = 0

    def epoch(self) -> int:
        return self._last

    def next_epoch(self, *, after: int = 0) -> int:
        self._last = max(self._last, after) + 1
        return self._last


class Token:
    """In the place of lanes: the keys that have come to one signer's HSM."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    async def load(self, entries: Sequence[Entry]) -> list[object]:
        await asyncio.sleep(0)
        absent = NotFound("HSM_KEY_ABSENT", "The HSM has no such key.")
        return [(one.key_id,) if one.key_id in self.keys else absent for one in entries]


class Signer:
    """What a signer process knows, without its gRPC."""

    def __init__(self, folder: Path, token: Token) -> None:
        self._reader = KeyringReader(folder)
        self.live = Live(cast("Lanes", token))
        self.trouble: KmsdError | None = None

    async def follow(self) -> None:
        """As the signer's loop does."""
        try:
            if news := self._reader.follow():
                await self.live.follow(news)
            elif self.live.trouble:
                await self.live.look_again()
            self.trouble = None
        except KmsdError as error:
            self.trouble = error


class Reader:
    """An STI-AS that watches one signer after the other, through the client's own eyes."""

    def __init__(self) -> None:
        self._told = Told()
        self._watch: AsyncGenerator[CredentialEvent, None] | None = None
        self._next: asyncio.Task[CredentialEvent] | None = None

    async def watch(self, live: Live) -> None:
        await self.close()
        self._resync = Resync(self._told)
        self._watch = events(live, lambda profile: True)
        await self.hear()

    async def hear(self) -> None:
        """Everything that there is to hear now."""
        while self._watch is not None:
            self._next = self._next or asyncio.ensure_future(anext(self._watch))
            await asyncio.sleep(0)
            if not self._next.done():
                await asyncio.sleep(0)
            if not self._next.done():
                return
            heard = change_of(self._next.result())
            self._next = None
            changes = self._resync.changes(heard)
            assert len(set(map(repr, changes))) == len(changes)

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        if self._watch is not None:
            await self._watch.aclose()
        self._watch = self._next = None

    def active(self) -> dict[str, tuple[str, str, str]]:
        """By profile: credential, x5u, hash of the key."""
        known = self._told.active.values()
        return {one.profile: _facts(one) for one in known if isinstance(one, ActiveCredential)}

    def coming(self) -> dict[str, tuple[str, str, str]]:
        return {one.profile: _facts(one) for one in self._told.coming.values()}


class Host(RuleBasedStateMachine):
    """A keeper's store and switch, two signers, and a reader of each."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = Path(tempfile.mkdtemp())
        self._epochs = Epochs()
        self._number = 0
        self._credentials: dict[str, Credential] = {}
        self._switched: set[str] = set()
        self._harmed = self._lost = False
        self._tokens = [Token() for _ in SIGNERS]
        self._readers = [Reader() for _ in SIGNERS]
        self._watched = list(SIGNERS)

    @initialize()
    def start(self) -> None:
        self._keeper_starts()
        self._signers = [Signer(self._folder / "keyring", token) for token in self._tokens]
        for index in SIGNERS:
            self._run(self._signers[index].follow())
            self._run(self._readers[index].watch(self._signers[index].live))

    # --- the keeper

    @rule(profile=st.sampled_from(PROFILES), everywhere=st.booleans(), killed=KILLED)
    def publish(self, profile: str, everywhere: bool, killed: int) -> None:
        new = self._new(profile, self._tokens[: None if everywhere else 1])
        self._doing(self._switch.announce(new), killed)

    @rule(data=st.data(), killed=KILLED)
    def activate(self, data: st.DataObject, killed: int) -> None:
        waiting = [c for c in self._credentials.values() if isinstance(c.state, Published)]
        if not waiting:
            return
        one = data.draw(st.sampled_from(waiting))
        self._switched.add(one.id)
        if not self._doing(self._switch.activate(one), killed):
            return
        for former in list(self._credentials.values()):
            if former.profile == one.profile and isinstance(former.state, Active):
                self._store(_retired(former))
        state = cast("Published", one.state)
        active = Active(state.birth, state.certificate, state.x5u, since=1, epoch=1)
        one = replace(one, state=active)
        self._store(one)
        self._doing(self._switch.announce(one), 0)

    @rule(data=st.data(), killed=KILLED)
    def fail(self, data: st.DataObject, killed: int) -> None:
        waiting = [c for c in self._credentials.values() if isinstance(c.state, Published)]
        waiting = [c for c in waiting if not self._switch.holds(c)]
        if not waiting:
            return
        one = data.draw(st.sampled_from(waiting))
        one = replace(one, state=Failed("published", 5, "GIVEN_UP", "Given up."))
        self._store(one)
        self._doing(self._switch.announce(one), killed)

    @rule(data=st.data(), killed=KILLED)
    def revoke(self, data: st.DataObject, killed: int) -> None:
        active = [c for c in self._credentials.values() if isinstance(c.state, Active)]
        if not active:
            return
        one = replace(
            _retired(data.draw(st.sampled_from(active))), revocation=Revocation(at=5, reason=1)
        )
        self._store(one)
        self._doing(self._switch.withdraw(one), killed)

    @rule(profile=st.sampled_from(PROFILES), fails=st.booleans())
    def announce_on_a_full_disk(self, profile: str, fails: bool) -> None:
        new = self._new(profile, self._tokens)
        if fails:
            self._run(self._switch.announce(new))
        with pytest.MonkeyPatch.context() as full:
            full.setattr(sealed, "write", _refused)
            self._run(self._switch.announce(new))
            if fails:
                gone = replace(new, state=Failed("published", 5, "GIVEN_UP", "Given up."))
                self._store(gone)
                self._run(self._switch.announce(gone))

    @rule(killed=KILLED)
    def restart_keeper(self, killed: int) -> None:
        self._keeper_starts(killed)

    @rule(data=st.data(), how=st.sampled_from(["lose", "tear", "exchange"]))
    def harm(self, data: st.DataObject, how: str) -> None:
        files = sorted((self._folder / "keyring").iterdir())
        if not files:
            return
        one, other = (data.draw(st.sampled_from(files)) for _ in range(2))
        self._harmed = True
        match how:
            case "lose":
                self._lost = True
                one.unlink()
            case "tear":
                os.truncate(one, one.stat().st_size // 2)
            case _:
                content = one.read_bytes()
                one.write_bytes(other.read_bytes())
                other.write_bytes(content)

    # --- signers, and who watches them

    @rule(index=st.sampled_from(SIGNERS))
    def follow(self, index: int) -> None:
        self._run(self._signers[index].follow())
        self._hear()
        signer = self._signers[index]
        if signer.trouble is not None:
            assert self._harmed
            assert isinstance(signer.trouble, Misconfigured)
        elif not self._harmed and not self._lost:
            _check_follows(signer.live, keyring.read(self._folder / "keyring"))

    @rule(index=st.sampled_from(SIGNERS))
    def keys_come(self, index: int) -> None:
        self._tokens[index].keys.update(c.key_id for c in self._credentials.values())

    @rule(index=st.sampled_from(SIGNERS))
    def restart_signer(self, index: int) -> None:
        self._signers[index] = Signer(self._folder / "keyring", self._tokens[index])
        self._run(self._signers[index].follow())
        for reader in SIGNERS:
            if self._watched[reader] == index:
                self._run(self._readers[reader].watch(self._signers[index].live))

    @rule(reader=st.sampled_from(SIGNERS), index=st.sampled_from(SIGNERS))
    def watch_another(self, reader: int, index: int) -> None:
        self._watched[reader] = index
        self._run(self._readers[reader].watch(self._signers[index].live))

    # --- what holds at any moment

    @invariant()
    def key_chain_and_x5u_are_of_one_credential(self) -> None:
        for signer, token in zip(getattr(self, "_signers", ()), self._tokens, strict=False):
            for entry in signer.live.entries():
                whole = self._of(entry.credential)
                key = signer.live.key(entry.profile)
                assert entry == key.entry == whole
                assert entry.credential in self._switched
                assert key.handles == (whole.key_id,)
                assert whole.key_id in token.keys
                padded = key.header("shaken") + "=="
                assert json.loads(base64.urlsafe_b64decode(padded))["x5u"] == whole.x5u

    @invariant()
    def readers_know_what_their_signer_does(self) -> None:
        for reader, index in zip(self._readers, self._watched, strict=True):
            if not hasattr(self, "_signers"):
                return
            live = self._signers[index].live
            assert reader.active() == {one.profile: _facts(one) for one in live.entries()}
            assert reader.coming() == {one.profile: _facts(one) for one in live.coming()}

    def teardown(self) -> None:
        """It settles: the keeper starts, keys are everywhere, everybody looks."""
        try:
            if hasattr(self, "_signers"):
                self._settles()
        finally:
            for reader in self._readers:
                self._run(reader.close())
            self._runner.close()
            shutil.rmtree(self._folder)

    def _settles(self) -> None:
        self._keeper_starts()
        if self._lost:  # without a trace, if it was the newest: the next epoch leads all on
            leading = self._new("cedar", self._tokens)
            self._switched.add(leading.id)
            self._run(self._switch.activate(leading))
        ring = keyring.read(self._folder / "keyring")
        entries = {one.profile: one for one in ring.entries}
        for one in self._credentials.values():
            if isinstance(one.state, Active) and one.revocation is None:
                assert one.profile in entries  # it, or one that is about to follow it
            if is_coming(one):
                assert one.profile in {c.profile for c in ring.coming} | entries.keys()
        for entry in entries.values():
            assert entry == self._of(entry.credential)
        for coming in ring.coming:
            assert is_coming(self._credentials[coming.credential])
            assert coming == self._of(coming.credential).public()
        for index in SIGNERS:
            self.keys_come(index)
            # Once for the news; again for each key that was missed.
            for _ in range(3):
                self._run(self._signers[index].follow())
            self._hear()
            signer = self._signers[index]
            assert signer.trouble is None
            assert not signer.live.trouble
            _check_follows(signer.live, ring)
        self.key_chain_and_x5u_are_of_one_credential()
        self.readers_know_what_their_signer_does()

    # --- how it is done

    def _keeper_starts(self, killed: int = 0) -> None:
        self._switch = Switch(
            cast("Store", self._epochs), self._folder / "keyring", self._folder / "run"
        )
        if self._doing(self._switch.reconcile(self._credentials.values()), killed):
            self._harmed = False

    def _doing(self, what: Coroutine[Any, Any, object], killed: int) -> bool:
        """Whether it was done; if not, another keeper has started since."""
        with pytest.MonkeyPatch.context() as patch:
            if killed:
                patch.setattr(sealed, "write", _deadly(sealed.write, killed))
            try:
                self._run(what)
                return True
            except Killed:
                pass
        self._keeper_starts()
        return False

    def _new(self, profile: str, tokens: Sequence[Token]) -> Credential:
        """A published credential, with its key in these tokens."""
        self._number += 1
        new = _published(self._number, profile)
        for token in tokens:
            token.keys.add(new.key_id)
        self._store(new)
        return new

    def _store(self, credential: Credential) -> None:
        self._credentials[credential.id] = credential

    def _of(self, credential_id: str) -> Entry:
        """All that belongs to a credential, whatever has become of it."""
        number = int(credential_id, 16)
        return entry_of(_published(number, self._credentials[credential_id].profile))

    def _hear(self) -> None:
        for reader in self._readers:
            self._run(reader.hear())

    def _run(self, what: Coroutine[Any, Any, R]) -> R:
        return self._runner.run(what)


def _refused(path: Path, content: bytes) -> None:
    raise sealed.not_written(path, OSError(28, "No space left on device"))


def _deadly(write: Callable[[Path, bytes], None], killed: int) -> Callable[[Path, bytes], None]:
    writes = itertools.count(1)

    def dies(path: Path, content: bytes) -> None:
        if next(writes) < (killed + 1) // 2:
            write(path, content)
            return
        if killed % 2 == 0:
            write(path, content)
        else:
            path.with_suffix(".tmp").write_bytes(content[:9])
        raise Killed

    return dies


def _published(number: int, profile: str) -> Credential:
    spki = hashlib.sha256(f"{number}".encode()).hexdigest()
    birth = BirthRecord(f"{number:032x}", "label", 5, b"spki", {}, "module", "kmsd", "0001")
    certificate = Certificate("PEM", "ca", "https://ca/o/1", "0a", spki, number, number + 9)
    x5u = f"https://cr.example.org/{number}.pem"
    state = Published(birth, certificate, x5u)
    return Credential(f"{number:016x}", profile, "1234", birth.key_id, number, state)


def _retired(former: Credential) -> Credential:
    state = former.state
    assert isinstance(state, Active)
    assert birth_of(state) is not None
    gone = Retired(state.birth, state.certificate, state.x5u, since=1, destroy_at=2)
    return replace(former, state=gone)


def _check_follows(live: Live, ring: Snapshot) -> None:
    entries = {one.profile: one for one in live.entries()}
    coming = {one.profile: one for one in ring.coming}
    missing = [one for one in ring.entries if one.profile in live.trouble]
    for one in ring.entries:
        assert one in missing or entries[one.profile] == one
    assert entries.keys() <= {one.profile for one in ring.entries}
    coming = {one.profile: one.public() for one in missing} | coming
    assert {one.profile: one for one in live.coming()} == coming
    assert live.epoch == ring.epoch
    signed_with = {(one.profile, one.credential) for one in live.entries()}
    assert not signed_with & {(one.profile, one.credential) for one in live.coming()}


def _facts(one: Any) -> tuple[str, str, str]:
    return one.credential, one.x5u, one.spki_sha256


def test_any_interleaving_leaves_key_chain_and_x5u_together_and_readers_with_the_truth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(keyring, "KEPT_DELTAS", 3)
    assert switch.ACKNOWLEDGED_WITHIN > 1
    run_state_machine_as_test(
        Host,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
