"""The keyring: which credential each profile signs with, as files the keeper writes and every
signer of the host follows.

`snapshot-<epoch>.json` holds all entries at one epoch; `delta-<epoch>.json` what one later epoch
changed, so that a switch costs what changed and not the number of profiles. Files are written whole
(temporary file, fsync, rename) and never altered. They are also a signer's last-good copy at a
cold start. Nothing here is secret; nothing here may be written by anybody but the keeper.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from kmsd.errors import Misconfigured, Unavailable
from kmsd.model import Value

KEPT_DELTAS = 64
"""Deltas beyond this many are folded into a new snapshot."""


class Entry(Value, frozen=True):
    """What one profile signs with: key, certificate and x5u as one value.

    key_id: CKA_ID, 32 hex digits. spki_sha256: hex, compared with the HSM before use.
    not_before, not_after: of the certificate, seconds UTC.
    """

    profile: str
    spc: str
    credential: str
    key_id: str
    spki_sha256: str
    x5u: str
    not_before: int
    not_after: int


class Snapshot(Value, frozen=True):
    """All entries at `epoch`."""

    epoch: int
    entries: tuple[Entry, ...] = ()


class Delta(Value, frozen=True):
    """What `epoch` changed: new or replaced entries, and profiles that sign no more."""

    epoch: int
    entries: tuple[Entry, ...] = ()
    withdrawn: tuple[str, ...] = ()


class KeyringWriter:
    """The keeper's side. Only one may exist for a folder (the keeper holds the store's lock).

    Raises Unavailable and Misconfigured as `read` does, and when the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            try:
                folder.mkdir(parents=True)
                folder.chmod(0o750)
            except OSError as error:
                raise _not_written(folder, error) from error
        self._folder = folder
        state = read(folder)
        self.epoch = state.epoch
        self.entries = {entry.profile: entry for entry in state.entries}

    def switch(self, epoch: int, entries: Iterable[Entry], withdrawn: Iterable[str] = ()) -> None:
        """Makes `epoch`, later than the present one, what the signers follow. All or nothing.

        Raises Unavailable (disk full, not writable); the keyring is then as before.
        """
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} does not come after {self.epoch}")
        delta = Delta(epoch, tuple(entries), tuple(withdrawn))
        _write(self._folder / f"delta-{epoch:016d}.json", delta)
        self.epoch = epoch
        _apply(self.entries, delta)
        with suppress(Unavailable, OSError):  # the switch is made; the next one folds again
            self._fold()

    def _fold(self) -> None:
        snapshots, deltas = _files(self._folder)
        if len(deltas) > KEPT_DELTAS:
            snapshot = Snapshot(self.epoch, tuple(self.entries.values()))
            _write(self._folder / f"snapshot-{self.epoch:016d}.json", snapshot)
            for path in (*snapshots.values(), *deltas.values()):
                path.unlink(missing_ok=True)


class KeyringReader:
    """A signer's side: follows the folder. Cheap when nothing changed (one directory listing)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.epoch = -1

    def follow(self) -> Snapshot | list[Delta]:
        """What came since the last call: deltas in order, or everything when it needs that.

        An empty list means nothing. Raises Unavailable and Misconfigured as `read` does; the
        next call then starts from the same place.
        """
        snapshots, deltas = _files(self._folder)
        if self.epoch < 0 or max(snapshots, default=0) > self.epoch:
            snapshot = read(self._folder)
            self.epoch = snapshot.epoch
            return snapshot
        try:
            new = [_load(path, Delta) for epoch, path in deltas.items() if epoch > self.epoch]
        except FileNotFoundError:  # folded into a snapshot meanwhile: the next call sees that
            return []
        if new:
            self.epoch = new[-1].epoch
        return new


def read(folder: Path) -> Snapshot:
    """The whole keyring as it is on disk now; epoch 0 and empty when none was written yet.

    Raises Unavailable (no such folder, not readable), Misconfigured (a file is damaged).
    """
    for _ in range(100):
        snapshots, deltas = _files(folder)
        try:
            start = Snapshot(0)
            if snapshots:
                start = _load(snapshots[max(snapshots)], Snapshot)
            entries = {entry.profile: entry for entry in start.entries}
            epoch = start.epoch
            for number, path in deltas.items():
                if number > epoch:
                    _apply(entries, _load(path, Delta))
                    epoch = number
        except FileNotFoundError:  # the keeper folds the deltas just now
            continue
        return Snapshot(epoch, tuple(entries.values()))
    raise Unavailable("KEYRING_UNREADABLE", f"Files of the keyring {folder} cannot be opened.")


def _apply(entries: dict[str, Entry], delta: Delta) -> None:
    entries.update({entry.profile: entry for entry in delta.entries})
    for profile in delta.withdrawn:
        entries.pop(profile, None)


def _files(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Snapshots and deltas by epoch, in order."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise Unavailable(
            "KEYRING_UNREADABLE",
            f"The keyring {folder} cannot be read: {error.strerror}.",
            next_step="Is the keeper set up on this host, and may this user read the folder?",
        ) from error
    found: dict[str, dict[int, Path]] = {"snapshot": {}, "delta": {}}
    for name in names:
        if match := _NAME.fullmatch(name):
            found[match[1]][int(match[2])] = folder / name
    return found["snapshot"], found["delta"]


_NAME = re.compile(r"(snapshot|delta)-(\d{16})\.json")
_Document = TypeVar("_Document", Snapshot, Delta)


def _load(path: Path, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise Misconfigured(
            "KEYRING_DAMAGED",
            f"{path} is damaged: {error}.",
            next_step="Move the keyring folder away and restart the keeper: it writes it anew.",
        ) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(
            "KEYRING_UNREADABLE",
            f"{path} cannot be read: {error.strerror}.",
            next_step="May this user read it?",
        ) from error


def _write(path: Path, document: Snapshot | Delta) -> None:
    """The whole file under its name, or nothing."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), 0o640)
            file.write(msgspec.json.encode(document))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        "KEYRING_NOT_WRITTEN",
        f"{path} cannot be written: {error.strerror}.",
        next_step="Make room on the disk; signing goes on with the present keyring.",
    )
