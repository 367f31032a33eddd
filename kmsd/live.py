"""What a signer signs with right now: the keyring's entries with their keys loaded.

Changed only between two steps of the event loop, so a frame that took its key signs under one
epoch to the end. An entry whose key the HSM does not have (or has differently) does not replace
one that works; it is reported as trouble and looked for again.

What is announced is passed on to watchers and no more: it is signed with when it is an entry.
"""

import asyncio
import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kmsd import passport
from kmsd.errors import KmsdError, NotFound
from kmsd.lane import Handles
from kmsd.lanes import Lanes
from kmsd.model import Value
from kmsd.ring import Coming, Delta, Entry, Snapshot

WATCHER_BACKLOG = 10_000
LOOKED_FOR_AT_ONCE = 16
"""Missing keys that one `look_again` searches for: each search may cost the lanes 30 ms."""


class End(enum.Enum):
    """WITHDRAWN: the profile signs no more. CALLED_OFF: what was announced will not come."""

    WITHDRAWN = enum.auto()
    CALLED_OFF = enum.auto()


class Change(Value, frozen=True):
    """One thing that became different for a profile: it signs with an entry now, which ends the
    announcement of the same credential; it will sign with another; or an end."""

    epoch: int
    profile: str
    news: Entry | Coming | End


LOST: Final = None
"""In place of a change: there were more than the watcher read."""


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
        self._announced: dict[str, Coming] = {}
        self._watchers: set[asyncio.Queue[Change | None]] = set()
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

    def coming(self) -> list[Coming]:
        """All that will be signed with, in no order."""
        profiles = self._announced.keys() | self._missing.keys()
        return [coming for profile in profiles if (coming := self._next(profile)) is not None]

    async def follow(self, news: Snapshot | list[Delta]) -> None:
        """Takes over what the keyring says: keys are loaded first, then everything switches."""
        if isinstance(news, list):
            for delta in news:
                await self._switch(delta)
            return
        entries = {entry.profile for entry in news.entries}
        coming = {coming.profile for coming in news.coming}
        await self._switch(
            Delta(
                news.epoch,
                news.entries,
                tuple((self._keys.keys() | self._missing.keys()) - entries),
                news.coming,
                tuple(self._announced.keys() - coming),
            )
        )

    async def look_again(self) -> None:
        """Looks for some of the keys that were missing: HSMs replicate in their own time."""
        missing = list(self._missing.values())[:LOOKED_FOR_AT_ONCE]
        if missing:
            await self._switch(Delta(self.epoch, tuple(missing)))

    async def _switch(self, delta: Delta) -> None:
        changed = [entry for entry in delta.entries if self._entry(entry.profile) != entry]
        loaded = await self._lanes.load(changed) if changed else []
        keys = [_key(entry, handles) for entry, handles in zip(changed, loaded, strict=True)]
        # From here to the end nothing awaits: this is the switch.
        before = {profile: self._next(profile) for profile in _touched(delta)}
        for entry in delta.entries:
            if _same(entry, self._announced.get(entry.profile)):
                del self._announced[entry.profile]  # it has come, or is missed
        for profile in (*(entry.profile for entry in delta.entries), *delta.withdrawn):
            self._missing.pop(profile, None)
            self.trouble.pop(profile, None)
        for entry, key in zip(changed, keys, strict=True):
            if isinstance(key, KmsdError):
                self._missing[entry.profile] = entry  # at the end: the others have their turn
                self.trouble[entry.profile] = key
            else:
                self._keys[entry.profile] = key
                self._tell(Change(delta.epoch, entry.profile, entry))
        for profile in delta.withdrawn:
            if self._keys.pop(profile, None) is not None:
                self._tell(Change(delta.epoch, profile, End.WITHDRAWN))
        self._announced.update({coming.profile: coming for coming in delta.coming})
        for profile in delta.called_off:
            self._announced.pop(profile, None)
        for profile, known in before.items():
            self._tell_next(delta.epoch, profile, known)
        self.epoch = delta.epoch

    def _next(self, profile: str) -> Coming | None:
        """What the profile will sign with: what is announced, or an entry whose key is missed."""
        announced, missing = self._announced.get(profile), self._missing.get(profile)
        if announced is None and missing is not None:
            return missing.public()
        return announced

    def _tell_next(self, epoch: int, profile: str, known: Coming | None) -> None:
        """Tells what will be signed with, unless it is `known`."""
        coming, entry = self._next(profile), self._entry(profile)
        if coming is not None and coming != known:
            self._tell(Change(epoch, profile, coming))
        elif coming is None and known is not None and not _same(entry, known):
            self._tell(Change(epoch, profile, End.CALLED_OFF))

    @contextmanager
    def watch(self) -> Iterator["asyncio.Queue[Change | None]"]:
        """A queue of changes from now on.

        A watcher that does not read loses its queue: it sees `LOST` and must begin anew.
        """
        queue: asyncio.Queue[Change | None] = asyncio.Queue(WATCHER_BACKLOG)
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

    def _lose(self, queue: "asyncio.Queue[Change | None]") -> None:
        self._watchers.discard(queue)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(LOST)


def _touched(delta: Delta) -> set[str]:
    """The profiles for which something may be different."""
    named = {entry.profile for entry in delta.entries}
    announced = {coming.profile for coming in delta.coming}
    return {*named, *announced, *delta.withdrawn, *delta.called_off}


def _same(entry: Entry | None, coming: Coming | None) -> bool:
    """Whether both are there and of one credential."""
    return entry is not None and coming is not None and entry.credential == coming.credential


def _key(entry: Entry, handles: Handles | KmsdError) -> Key | KmsdError:
    if isinstance(handles, KmsdError):
        return handles
    try:
        return Key(entry, handles)
    except KmsdError as error:
        return error
