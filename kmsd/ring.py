"""The keyring's content: which credential each profile signs with, and which one comes next.

Two kinds of document say so: a snapshot everything, a delta what changed. An epoch is what is
signed with; notes under it announce what is to come, and nobody acknowledges them, for no
signature depends on them. How they are kept on disk and followed: `keyring`.
"""

from typing import NamedTuple

from kmsd.model import Value


class Coming(Value, frozen=True):
    """What a profile will sign with next: public, not yet active. No signer can sign with it, for
    it does not say with which key.

    spki_sha256: hex. not_before, not_after: of the certificate, seconds UTC.
    """

    profile: str
    spc: str
    credential: str
    spki_sha256: str
    x5u: str
    not_before: int
    not_after: int


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

    def public(self) -> Coming:
        """The same without its key."""
        return Coming(
            self.profile,
            self.spc,
            self.credential,
            self.spki_sha256,
            self.x5u,
            self.not_before,
            self.not_after,
        )


class Position(NamedTuple):
    """Where in the keyring's history: the note-th note under an epoch; 0 is the switch itself."""

    epoch: int
    note: int


class Snapshot(Value, frozen=True):
    """Everything at one position. last: checksum of the document that led there."""

    epoch: int
    entries: tuple[Entry, ...] = ()
    coming: tuple[Coming, ...] = ()
    note: int = 0
    last: str = ""


class Delta(Value, frozen=True):
    """What changed: new or replaced entries, and profiles that sign no more; announced
    credentials, and profiles whose announced one will not come.

    An entry ends the announcement of its own credential. previous: checksum of the document
    before.
    """

    epoch: int
    entries: tuple[Entry, ...] = ()
    withdrawn: tuple[str, ...] = ()
    coming: tuple[Coming, ...] = ()
    called_off: tuple[str, ...] = ()
    note: int = 0
    previous: str = ""


class Ring:
    """The keyring in memory: entries and announced credentials by profile."""

    def __init__(self, start: Snapshot) -> None:
        self.position = Position(start.epoch, start.note)
        self.last = start.last
        self.entries = {entry.profile: entry for entry in start.entries}
        self.coming = {coming.profile: coming for coming in start.coming}

    def apply(self, delta: Delta, digest: str) -> None:
        """Goes on to the delta's position. digest: its checksum."""
        for entry in delta.entries:
            self.entries[entry.profile] = entry
            announced = self.coming.get(entry.profile)
            if announced is not None and announced.credential == entry.credential:
                del self.coming[entry.profile]
        for profile in delta.withdrawn:
            self.entries.pop(profile, None)
        for coming in delta.coming:
            self.coming[coming.profile] = coming
        for profile in delta.called_off:
            self.coming.pop(profile, None)
        self.position = Position(delta.epoch, delta.note)
        self.last = digest

    def snapshot(self) -> Snapshot:
        """As a value."""
        epoch, note = self.position
        entries, coming = tuple(self.entries.values()), tuple(self.coming.values())
        return Snapshot(epoch, entries, coming, note, self.last)
