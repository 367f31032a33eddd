"""The switch: key, chain and x5u of profiles change together, in every signer, under one epoch.

Writes the keyring and waits until every live signer of the host has acknowledged the epoch. The
store says what should be; the keyring is brought in line with it when the keeper starts.

What comes next is announced in the same files and the same order, but under the present epoch and
without waiting: an epoch counts what signatures depend on, and on an announcement none does. So
announcing needs neither the database nor the signers, and can hold nothing up.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from kmsd.errors import Unavailable
from kmsd.keyring import KeyringWriter
from kmsd.model import Active, Credential, Published
from kmsd.presence import NOT_SERVING, TOO_MANY, Acknowledgement, seen
from kmsd.ring import Coming, Entry
from kmsd.store import Store

ACKNOWLEDGED_WITHIN = 10.0
"""Seconds a live signer has to follow; it looks many times a second."""

log = structlog.get_logger()


class Switch:
    """The keeper's hand on the keyring."""

    def __init__(self, store: Store, folder: Path, run: Path) -> None:
        self._store = store
        self._run = run
        self._writer = KeyringWriter(folder)
        if self._writer.damage is not None:
            log.error("keyring_damaged", message=self._writer.damage.message)
        # By profile what is coming (None: nothing), as far as the keyring may not say so yet.
        self._unsaid: dict[str, Coming | None] = {}
        # Not asyncio's: a caller that is cancelled leaves its thread writing.
        self._turn = threading.Lock()

    @property
    def epoch(self) -> int:
        """The newest epoch written."""
        return self._writer.epoch

    def holds(self, credential: Credential) -> bool:
        """Whether it is what the signers were told to sign with."""
        entry = self._writer.entries.get(credential.profile)
        return entry is not None and entry.credential == credential.id

    async def activate(self, credential: Credential) -> int:
        """Switches the credential's profile to it; gives the epoch once every signer follows.

        Raises Unavailable: keyring not written (all is as before), SIGNER_BEHIND or
        SIGNER_WITHOUT_KEY (the switch is made, a signer has not followed yet or does not find
        the key: asking again waits for it).
        """
        entry = entry_of(credential)
        if self._writer.entries.get(entry.profile) != entry:
            await self._write([entry], [])
        else:  # asked again: a signer may be behind because a file is spoiled
            await self._in_turn(self._writer.mend)
        epoch = self._writer.epoch
        await self._acknowledged(epoch, entry.profile)
        return epoch

    async def withdraw(self, credential: Credential) -> None:
        """No signer signs with the credential any more. Raises Unavailable as `activate`."""
        await self._write([], [credential.profile], only_if=lambda: self.holds(credential))
        await self._acknowledged(self._writer.epoch)

    async def announce(self, credential: Credential) -> None:
        """Tells signers, and through them every STI-AS, what a credential's new state makes of it:
        a published one is coming, one that failed is not any more. Waits for nobody.

        Never fails: what cannot be written now is written with whatever is written next.
        """
        profile = credential.profile
        known = self._unsaid.get(profile, self._writer.coming.get(profile))
        if is_coming(credential) and not self.holds(credential):
            coming: Coming | None = entry_of(credential).public()
        elif known is not None and known.credential == credential.id:
            coming = None
        else:
            return
        if coming != known:
            self._unsaid[profile] = coming
            try:
                await self._in_turn(self._say)
            except Unavailable as error:
                log.warning("not_announced", profile=profile, reason=error.reason)

    async def reconcile(self, credentials: Iterable[Credential]) -> None:
        """Brings the keyring in line with the store: after a crash, a restore, a new host.

        A published credential that is in the keyring already was about to become active when the
        keeper died: it stays, and the machine finishes that step. Every other one is coming.

        A keyring that does not know of the last epoch has lost it: signers may follow what nobody
        else remembers, and are led on by a new one.
        """
        changed, gone = self._differences(list(credentials))
        lost = await asyncio.to_thread(self._store.epoch) > self._writer.epoch
        if changed or gone or lost or self._writer.damage is not None:
            await self._write(changed, gone)
        elif self._unsaid:
            await self._in_turn(self._say)

    async def follow(self, credentials: Iterable[Credential]) -> None:
        """The same while a keeper on another host acts: nothing is written to the store. The
        epochs are this host's own until its keeper acts, which counts on from them."""
        changed, gone = self._differences(list(credentials))
        if changed or gone or self._writer.damage is not None:
            await self._in_turn(lambda: self._switch(self._writer.epoch + 1, changed, gone))
        elif self._unsaid:
            await self._in_turn(self._say)

    def _differences(self, credentials: list[Credential]) -> tuple[list[Entry], list[str]]:
        """What the keyring lacks, and the profiles that it has too many. Notes what is coming."""
        wanted: dict[str, Entry] = {}
        for credential in credentials:
            if credential.revocation is not None:
                continue  # whatever it was about to become: nothing is signed with it
            match credential.state:
                case Active():
                    wanted.setdefault(credential.profile, entry_of(credential))
                case Published():
                    entry = entry_of(credential)
                    if self._writer.entries.get(credential.profile) == entry:
                        wanted[credential.profile] = entry
                case _:
                    pass
        present = self._writer.entries
        changed = [entry for profile, entry in wanted.items() if present.get(profile) != entry]
        gone = [profile for profile in present if profile not in wanted]
        self._unsaid = self._unannounced(credentials, wanted)
        return changed, gone

    def _unannounced(
        self, credentials: list[Credential], wanted: dict[str, Entry]
    ) -> dict[str, Coming | None]:
        announced, coming = self._writer.coming, dict[str, Coming]()
        for credential in credentials:
            profile = credential.profile
            entry = wanted.get(profile)
            if is_coming(credential) and (entry is None or entry.credential != credential.id):
                one = entry_of(credential).public()
                if profile not in coming or announced.get(profile) == one:
                    coming[profile] = one
        differs = {p: one for p, one in coming.items() if announced.get(p) != one}
        return {**differs, **{p: None for p in announced if p not in coming}}

    async def _write(
        self,
        entries: list[Entry],
        gone: list[str],
        only_if: Callable[[], bool] = lambda: True,
    ) -> None:
        def write() -> None:
            if only_if():  # asked now: another switch may have been before this one
                epoch = self._store.next_epoch(after=self._writer.epoch)
                self._switch(epoch, entries, gone)

        await self._in_turn(write)

    async def _in_turn(self, write: Callable[[], None]) -> None:
        def alone() -> None:
            with self._turn:
                write()

        await asyncio.to_thread(alone)

    def _switch(self, epoch: int, entries: list[Entry], gone: list[str]) -> None:
        """A switch, and what is unsaid with it."""
        said = dict(self._unsaid)
        self._writer.switch(epoch, entries, gone, *self._news(said, entries))
        self._forget(said)

    def _say(self) -> None:
        """What is unsaid alone."""
        said = dict(self._unsaid)
        coming, called_off = self._news(said, ())
        if coming or called_off:
            self._writer.announce(coming, called_off)
        self._forget(said)

    def _news(
        self, said: dict[str, Coming | None], entries: Iterable[Entry]
    ) -> tuple[list[Coming], list[str]]:
        """What of it is news besides `entries`: what is signed with is not coming."""
        new = {entry.profile: entry for entry in entries}
        coming, called_off = [], []
        for profile, one in said.items():
            entry = new.get(profile) or self._writer.entries.get(profile)
            if one is None and profile in self._writer.coming:
                called_off.append(profile)
            elif one is not None and (entry is None or entry.credential != one.credential):
                coming.append(one)
        return coming, called_off

    def _forget(self, said: dict[str, Coming | None]) -> None:
        for profile, coming in said.items():
            if self._unsaid.get(profile, ...) is coming:
                del self._unsaid[profile]

    async def _acknowledged(self, epoch: int, profile: str = "") -> None:
        """Waits for every live signer; profile: whose key each of them must have found."""
        deadline = time.monotonic() + ACKNOWLEDGED_WITHIN
        while True:
            # One that does not serve yet reads the newest keyring before it does.
            serving = [
                one.acknowledgement
                for one in seen(self._run)
                if one.alive and one.acknowledgement.epoch > NOT_SERVING
            ]
            behind = [said for said in serving if said.epoch < epoch]
            without = [said for said in serving if _without_key(said, profile)]
            if not behind and not without:
                return
            if time.monotonic() > deadline:
                raise _not_followed(epoch, behind, without)
            await asyncio.sleep(0.02)


def _without_key(said: Acknowledgement, profile: str) -> bool:
    return profile != "" and (profile in said.unusable or said.unusable == TOO_MANY)


def _not_followed(
    epoch: int, behind: list[Acknowledgement], without: list[Acknowledgement]
) -> Unavailable:
    if behind:
        numbers = ", ".join(str(said.index) for said in behind)
        return Unavailable(
            "SIGNER_BEHIND",
            f"Signer {numbers} has not followed to epoch {epoch}.",
            next_step="See why with `kmsctl status`; a restarted signer follows at once.",
        )
    numbers = ", ".join(str(said.index) for said in without)
    return Unavailable(
        "SIGNER_WITHOUT_KEY",
        f"Signer {numbers} cannot sign with the new key: {without[0].trouble}",
        next_step="The signers go on with the former key, and look for the new one.",
    )


def is_coming(credential: Credential) -> bool:
    """Whether it is public, and will be signed with unless something goes wrong."""
    stays_out = credential.rehearsal or credential.revocation is not None
    return isinstance(credential.state, Published) and not stays_out


def entry_of(credential: Credential) -> Entry:
    """What signers need to know of a published or active credential."""
    state = credential.state
    if not isinstance(state, Published | Active):
        raise ValueError(f"a {type(state).__name__} credential cannot sign")
    return Entry(
        profile=credential.profile,
        spc=credential.spc,
        credential=credential.id,
        key_id=credential.key_id,
        spki_sha256=state.certificate.spki_sha256,
        x5u=state.x5u,
        not_before=state.certificate.not_before,
        not_after=state.certificate.not_after,
    )
