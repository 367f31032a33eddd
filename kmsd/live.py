"""What a signer signs with right now: the keyring's entries with their keys loaded.

Changed only between two steps of the event loop, so a frame that took its key signs under one
epoch to the end. An entry whose key the HSM does not have (or has differently) does not replace
one that works; it is reported as trouble.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kmsd import passport
from kmsd.errors import KmsdError, NotFound
from kmsd.keyring import Delta, Entry, Snapshot
from kmsd.lanes import Lanes

PPTS = ("shaken", "base", "div", "rph", "rcd")
WATCHER_BACKLOG = 10_000
FRAME_PASSES_IN = 60.0
"""Seconds; far longer than any frame lives."""


class Key:
    """One entry with its protected headers already encoded, one for each PASSporT type."""

    __slots__ = ("entry", "headers")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.headers = {ppt: passport.header_segment(ppt, entry.x5u) for ppt in PPTS}


class Live:
    """The keys of one signer, followed by watchers."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._keys: dict[str, Key] = {}
        self._uses: Counter[str] = Counter()
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

    def entries(self) -> Iterator[Entry]:
        """All that can be signed with, in no order."""
        return (key.entry for key in list(self._keys.values()))

    async def follow(self, news: Snapshot | list[Delta]) -> None:
        """Takes over what the keyring says: keys are loaded first, then everything switches."""
        if isinstance(news, Snapshot):
            wanted = {entry.profile for entry in news.entries}
            gone = [profile for profile in self._keys if profile not in wanted]
            await self._switch(news.epoch, news.entries, gone)
            return
        for delta in news:
            await self._switch(delta.epoch, delta.entries, delta.withdrawn)

    async def _switch(self, epoch: int, entries: Iterable[Entry], gone: Iterable[str]) -> None:
        changed = [entry for entry in entries if self._entry(entry.profile) != entry]
        failed = await self._lanes.load(changed)
        keys = [Key(entry) for entry in changed if entry.key_id not in failed]
        # From here to the end nothing awaits: this is the switch.
        for entry in changed:
            self.trouble.pop(entry.profile, None)
            if entry.key_id in failed:
                self.trouble[entry.profile] = failed[entry.key_id]
        for key in keys:
            self._drop(self._keys.get(key.entry.profile))
            self._keys[key.entry.profile] = key
            self._uses[key.entry.key_id] += 1
            self._tell((epoch, key.entry, ""))
        for profile in gone:
            self.trouble.pop(profile, None)
            if (old := self._keys.pop(profile, None)) is not None:
                self._drop(old)
                self._tell((epoch, None, profile))
        self.epoch = epoch

    @contextmanager
    def watch(self) -> Iterator["asyncio.Queue[Change]"]:
        """A queue of changes from now on: (epoch, entry, "") or (epoch, None, withdrawn profile).

        A watcher that does not read loses its queue: it sees `LOST` and must begin anew.
        """
        queue: asyncio.Queue[Change] = asyncio.Queue(WATCHER_BACKLOG)
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)

    def _entry(self, profile: str) -> Entry | None:
        key = self._keys.get(profile)
        return key.entry if key else None

    def _drop(self, old: Key | None) -> None:
        if old is None:
            return
        key_id = old.entry.key_id
        self._uses[key_id] -= 1
        # A frame may still be on its way to a lane with the old key: let it pass first.
        asyncio.get_running_loop().call_later(FRAME_PASSES_IN, self._forget_unused, key_id)

    def _forget_unused(self, key_id: str) -> None:
        if self._uses[key_id] <= 0:
            del self._uses[key_id]
            self._lanes.forget(key_id)

    def _tell(self, change: "Change") -> None:
        for queue in list(self._watchers):
            try:
                queue.put_nowait(change)
            except asyncio.QueueFull:
                self._watchers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(LOST)


Change = tuple[int, Entry | None, str]
LOST: Change = (-1, None, "")
