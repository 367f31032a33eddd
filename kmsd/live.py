"""What a signer signs with right now: the keyring's entries with their keys loaded.

Changed only between two steps of the event loop, so a frame that took its key signs under one
epoch to the end. An entry whose key the HSM does not have (or has differently) does not replace
one that works; it is reported as trouble and looked for again.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from kmsd import passport
from kmsd.errors import KmsdError, NotFound
from kmsd.keyring import Delta, Entry, Snapshot
from kmsd.lanes import Handles, Lanes

WATCHER_BACKLOG = 10_000
LOOKED_FOR_AT_ONCE = 16
"""Missing keys that one `look_again` searches for: each search may cost the lanes 30 ms."""

Change = tuple[int, Entry | None, str]
LOST: Change = (-1, None, "")


class Key:
    """One entry, its key in every lane, and its protected headers, encoded once for each PASSporT
    type it signs (few profiles sign more than shaken, and there may be ten thousand).

    Raises KmsdError when its x5u cannot stand in a header.
    """

    __slots__ = ("_headers", "_shaken", "entry", "handles")

    def __init__(self, entry: Entry, handles: Handles) -> None:
        self.entry = entry
        self.handles = handles
        self._shaken = passport.header_segment("shaken", entry.x5u)
        self._headers: dict[str, str] | None = None

    def header(self, ppt: str) -> str:
        """The encoded protected header of a type; `base` for none."""
        if ppt == "shaken":
            return self._shaken
        if self._headers is None:
            self._headers = {}
        header = self._headers.get(ppt)
        if header is None:
            header = self._headers[ppt] = passport.header_segment(ppt, self.entry.x5u)
        return header


class Live:
    """The keys of one signer, followed by watchers.

    trouble: for each profile whose newest entry cannot be signed with, why.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._keys: dict[str, Key] = {}
        self._missing: dict[str, Entry] = {}
        self._watchers: set[asyncio.Queue[Change]] = set()
        self.epoch = 0
        self.trouble: dict[str, KmsdError] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, profile: str) -> Key:
        """What `profile` signs with. Raises NotFound (PROFILE_NOT_ACTIVE)."""
        try:
            return self._keys[profile]
        except KeyError:
            raise NotFound(
                "PROFILE_NOT_ACTIVE",
                f"There is no active credential for a profile {profile[:64]!r}.",
                next_step="An operator can see profiles with `kmsctl profiles`.",
                profile=profile[:64],
            ) from None

    def entries(self) -> list[Entry]:
        """All that can be signed with, in no order."""
        return [key.entry for key in self._keys.values()]

    async def follow(self, news: Snapshot | list[Delta]) -> None:
        """Takes over what the keyring says: keys are loaded first, then everything switches."""
        if isinstance(news, Snapshot):
            wanted = {entry.profile for entry in news.entries}
            gone = (self._keys.keys() | self._missing.keys()) - wanted
            await self._switch(news.epoch, news.entries, gone)
            return
        for delta in news:
            await self._switch(delta.epoch, delta.entries, delta.withdrawn)

    async def look_again(self) -> None:
        """Looks for some of the keys that were missing: HSMs replicate in their own time."""
        missing = list(self._missing.values())[:LOOKED_FOR_AT_ONCE]
        if missing:
            await self._switch(self.epoch, missing, ())

    async def _switch(self, epoch: int, entries: Sequence[Entry], gone: Iterable[str]) -> None:
        changed = [entry for entry in entries if self._entry(entry.profile) != entry]
        loaded = await self._lanes.load(changed)
        keys = [_key(entry, handles) for entry, handles in zip(changed, loaded, strict=True)]
        # From here to the end nothing awaits: this is the switch.
        for profile in (*(entry.profile for entry in entries), *gone):
            self._missing.pop(profile, None)
            self.trouble.pop(profile, None)
        for entry, key in zip(changed, keys, strict=True):
            if isinstance(key, KmsdError):
                self._missing[entry.profile] = entry  # at the end: the others have their turn
                self.trouble[entry.profile] = key
            else:
                self._keys[entry.profile] = key
                self._tell((epoch, entry, ""))
        for profile in gone:
            if self._keys.pop(profile, None) is not None:
                self._tell((epoch, None, profile))
        self.epoch = epoch

    @contextmanager
    def watch(self) -> Iterator[asyncio.Queue[Change]]:
        """A queue of changes from now on: (epoch, entry, "") or (epoch, None, withdrawn profile).

        A watcher that does not read loses its queue: it sees `LOST` and must begin anew.
        """
        queue: asyncio.Queue[Change] = asyncio.Queue(WATCHER_BACKLOG)
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)

    def end(self) -> None:
        """Ends every watch."""
        for queue in list(self._watchers):
            self._lose(queue)

    def _entry(self, profile: str) -> Entry | None:
        key = self._keys.get(profile)
        return key.entry if key else None

    def _tell(self, change: Change) -> None:
        for queue in list(self._watchers):
            try:
                queue.put_nowait(change)
            except asyncio.QueueFull:
                self._lose(queue)

    def _lose(self, queue: "asyncio.Queue[Change]") -> None:
        self._watchers.discard(queue)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(LOST)


def _key(entry: Entry, handles: Handles | KmsdError) -> Key | KmsdError:
    if isinstance(handles, KmsdError):
        return handles
    try:
        return Key(entry, handles)
    except KmsdError as error:
        return error
