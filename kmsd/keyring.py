"""The keyring on disk: what each profile signs with and will sign with next (`ring`), as files
that the keeper writes and every signer of the host follows.

`snapshot-<epoch>-<note>.json` holds everything; `delta-<epoch>-<note>.json` what changed after
the document before it, which it names by its checksum: one that is torn, lost, or in another's
place is noticed, and everything is read again. So a switch costs what changed and not the number of
profiles.

The files are a signer's last-good copy at a cold start. Nothing here is secret; nothing here may
be written by anybody but the keeper. How one file is kept whole: `sealed`.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kmsd import sealed
from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.ring import Coming, Delta, Entry, Position, Ring, Snapshot

KEPT_DELTAS = 64
"""Deltas that stay beside a snapshot: a signer that follows does without it."""
FOLDED_SHARE = 16
"""Deltas are folded into a new snapshot once they hold one change for this many entries: so each
change costs so many entries of a snapshot at most, however many profiles there are."""
MOST_DELTAS = 1024
"""Deltas that a signer reads at a cold start, at most."""


class KeyringWriter:
    """The keeper's side. Only one may exist for a folder (the keeper holds the store's lock).

    damage: what was wrong with the folder. What could still be read is where it starts from, and
    the next write puts everything right: it writes a snapshot.

    Raises Unavailable as `read` does, and when the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            try:
                folder.mkdir(parents=True)
                folder.chmod(0o750)
            except OSError as error:
                raise sealed.not_written(folder, error) from error
        self._folder = folder
        for leftover in folder.glob(f"*{sealed.TEMPORARY}"):
            leftover.unlink(missing_ok=True)
        self._ring, self.damage = _intact(folder)
        snapshots, deltas = _by_position(_listed(folder))
        # No signer may have been further, or it would not come along.
        self._ring.position = max([self._ring.position, *snapshots, *deltas])
        self._written = {*snapshots.values(), *deltas.values()}
        self._deltas = self._changes = sum(at > max(snapshots, default=at) for at in deltas)

    @property
    def epoch(self) -> int:
        """The newest epoch written."""
        return self._ring.position.epoch

    @property
    def entries(self) -> dict[str, Entry]:
        """By profile, as written."""
        return self._ring.entries

    @property
    def coming(self) -> dict[str, Coming]:
        """By profile, as written."""
        return self._ring.coming

    def switch(
        self,
        epoch: int,
        entries: Iterable[Entry],
        withdrawn: Iterable[str] = (),
        coming: Iterable[Coming] = (),
        called_off: Iterable[str] = (),
    ) -> None:
        """Makes `epoch`, later than the present one, what the signers follow. All or nothing.

        Raises Unavailable (disk full, not writable); the keyring is then as before.
        """
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} does not come after {self.epoch}")
        self._commit(
            Delta(
                epoch,
                tuple(entries),
                tuple(withdrawn),
                tuple(coming),
                tuple(called_off),
                previous=self._ring.last,
            )
        )

    def announce(self, coming: Iterable[Coming], called_off: Iterable[str] = ()) -> None:
        """Notes what is to come, and for which profiles it is not. The epoch stays: nothing is
        signed with anything else. Raises as `switch`."""
        self._note(tuple(coming), tuple(called_off))

    def mend(self) -> None:
        """Writes everything anew if the folder does not hold what was written. Costs as much as
        the keyring is long. Raises Unavailable."""
        ring, damage = _intact(self._folder)
        if damage or ring.snapshot() != self._ring.snapshot():
            self.damage = damage or sealed.damaged(self._folder, "it is not what was written")
            self._note((), ())

    def _note(self, coming: tuple[Coming, ...], called_off: tuple[str, ...]) -> None:
        epoch, note = self._ring.position
        self._commit(Delta(epoch, (), (), coming, called_off, note + 1, self._ring.last))

    def _commit(self, delta: Delta) -> None:
        content, digest = sealed.encode(delta)
        name = _name("delta", Position(delta.epoch, delta.note))
        if self.damage is None and _ours(_listed(self._folder)) == self._written:
            sealed.write(self._folder / name, content)
            self._written.add(name)
            self._ring.apply(delta, digest)
            with suppress(Unavailable, OSError):  # it is written; the next one folds again
                self._fold(len(delta.entries) + len(delta.withdrawn) + len(delta.coming))
            return
        # Lost or strange files: the chain ends here, and a new one begins.
        ring = Ring(self._ring.snapshot())
        ring.apply(delta, digest)
        self._write_snapshot(ring, kept=0)
        self._ring, self.damage = ring, None

    def _fold(self, changes: int) -> None:
        self._deltas += 1
        self._changes += changes
        share = self._changes * FOLDED_SHARE
        if self._deltas >= MOST_DELTAS or (
            self._deltas >= KEPT_DELTAS and share > len(self.entries)
        ):
            self._write_snapshot(self._ring, kept=KEPT_DELTAS)

    def _write_snapshot(self, ring: Ring, *, kept: int) -> None:
        """kept: so many of the newest deltas stay."""
        content, _ = sealed.encode(ring.snapshot())
        name = _name("snapshot", ring.position)
        sealed.write(self._folder / name, content)
        deltas = sorted(one for one in self._written if one.startswith("delta"))
        self._written = {name, *deltas[len(deltas) - kept :]}
        self._deltas = self._changes = 0
        with suppress(OSError, Unavailable):  # what is left is done with at the next write
            for other in _ours(_listed(self._folder)) - self._written:
                (self._folder / other).unlink(missing_ok=True)


class KeyringReader:
    """A signer's side: follows the folder. Cheap when nothing changed (one directory listing).

    It never goes back: of a folder that is empty, or older than what it has, it takes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] | None = None
        self._position: Position | None = None
        self._last = ""

    @property
    def epoch(self) -> int:
        """That it has followed to; -1 before the first look."""
        return self._position.epoch if self._position else -1

    def follow(self) -> Snapshot | list[Delta]:
        """What came since the last call: deltas in order, or everything when it needs that.

        An empty list means nothing. Raises Unavailable and Misconfigured as `read` does; the
        next call then starts from the same place.
        """
        names = _listed(self._folder)
        if names == self._names:
            return []
        snapshots, deltas = _by_position(names)
        here = self._position
        new = [name for at, name in deltas.items() if here is not None and at > here]
        if here is None or max(snapshots, default=here) > max([here, *deltas]):
            return self._everything(names)
        try:
            news = self._chained(new)
        except FileNotFoundError:  # folded into a snapshot meanwhile: the next call sees that
            return []
        except Misconfigured:  # or these are not the next ones
            return self._everything(names)
        self._names = names
        return news

    def _chained(self, names: list[str]) -> list[Delta]:
        news, position, last = list[Delta](), self._position, self._last
        for name in names:
            delta, digest = sealed.load(self._folder / name, Delta)
            _check_chain(self._folder / name, delta, last)
            news.append(delta)
            position, last = Position(delta.epoch, delta.note), digest
        self._position, self._last = position, last
        return news

    def _everything(self, names: list[str]) -> Snapshot:
        snapshot = read(self._folder)
        self._position, self._last = Position(snapshot.epoch, snapshot.note), snapshot.last
        self._names = names
        return snapshot


def read(folder: Path) -> Snapshot:
    """The whole keyring as it is on disk now; epoch 0 and empty when none was written yet.

    Raises Unavailable (no such folder, not readable), Misconfigured (a file is damaged or lost).
    """
    ring, damage = _intact(folder)
    if damage:
        raise damage
    return ring.snapshot()


def _intact(folder: Path) -> tuple[Ring, KmsdError | None]:
    """The keyring as far as its files are whole and in their places, and what is wrong then."""
    for _ in range(100):
        snapshots, deltas = _by_position(_listed(folder))
        ring = Ring(Snapshot(0))
        try:
            if snapshots:
                start, _ = sealed.load(folder / snapshots[max(snapshots)], Snapshot)
                ring = Ring(start)
            for at, name in deltas.items():
                if at > ring.position:
                    delta, digest = sealed.load(folder / name, Delta)
                    _check_chain(folder / name, delta, ring.last)
                    ring.apply(delta, digest)
        except FileNotFoundError:  # the keeper folds the deltas just now
            continue
        except Misconfigured as damage:
            return ring, damage
        return ring, None
    raise Unavailable("KEYRING_UNREADABLE", f"Files of the keyring {folder} cannot be opened.")


def _check_chain(path: Path, delta: Delta, last: str) -> None:
    if delta.previous != last:
        raise sealed.damaged(path, "it does not follow the file before it")
    if path.name != _name("delta", Position(delta.epoch, delta.note)):
        raise sealed.damaged(path, "it has another one's name")


def _listed(folder: Path) -> list[str]:
    """Names in the folder, in order."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise Unavailable(
            "KEYRING_UNREADABLE",
            f"The keyring {folder} cannot be read: {error.strerror}.",
            next_step="Is the keeper set up on this host, and may this user read the folder?",
        ) from error


def _name(kind: str, at: Position) -> str:
    return f"{kind}-{at.epoch:016d}-{at.note:08d}.json"


def _ours(names: Iterable[str]) -> set[str]:
    return {name for name in names if _NAME.fullmatch(name)}


def _by_position(names: list[str]) -> tuple[dict[Position, str], dict[Position, str]]:
    """Snapshots and deltas, in order."""
    found: dict[str, dict[Position, str]] = {"snapshot": {}, "delta": {}}
    for name in names:
        if match := _NAME.fullmatch(name):
            found[match[1]][Position(int(match[2]), int(match[3]))] = name
    return found["snapshot"], found["delta"]


_NAME = re.compile(r"(snapshot|delta)-(\d{16})-(\d{8})\.json")
