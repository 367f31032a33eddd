"""Which signers are alive on this host, and under which epoch each of them signs.

A signer holds a lock on `<run>/signers/<index>.json` as long as its process lives, and writes
its acknowledgement into it. The keeper reads them before it calls a switch done. A signer that
is dead need not acknowledge: when it starts, it reads the newest keyring first.
"""

import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType

import msgspec

from kmsd.errors import Misconfigured
from kmsd.model import Value

NOT_SERVING = -1
"""In place of an epoch."""
TOO_MANY = ("*",)
"""In place of the profiles without their newest key, when they are more than MOST_NAMED."""
MOST_NAMED = 20


class Acknowledgement(Value, frozen=True):
    """One signer's word. at, started_at: seconds UTC. profiles: how many it can sign for.

    epoch: NOT_SERVING before it has a keyring to sign with. trouble: why it does not serve, empty
    when it does. unusable: profiles whose newest entry it cannot sign with, or TOO_MANY.
    """

    index: int
    pid: int
    epoch: int
    at: int
    started_at: int
    profiles: int
    trouble: str = ""
    unusable: tuple[str, ...] = ()


class Seen(Value, frozen=True):
    """An acknowledgement as the keeper finds it; alive: the signer's process holds its lock."""

    acknowledgement: Acknowledgement
    alive: bool


class Presence:
    """The signer's side: held open for the life of the process.

    Raises Misconfigured when another live process has the same index, or the folder is not ours.
    """

    def __init__(self, run: Path, index: int) -> None:
        folder = run / "signers"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(folder / f"{index}.json", flags, 0o640)
        except OSError as error:
            raise Misconfigured(
                "RUN_FOLDER_UNUSABLE",
                f"{folder} cannot be written: {error.strerror}.",
                next_step="Its owner must be the user that signers run as; see `run` in kmsd.toml.",
            ) from error
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except (BlockingIOError, PermissionError) as error:
            os.close(self._file)
            raise Misconfigured(
                "SIGNER_INDEX_TAKEN",
                f"Signer {index} runs already.",
                next_step="Give each signer of a host its own --index.",
            ) from error

    def __enter__(self) -> "Presence":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        """Replaces the last word. One write, so that a reader sees the old or the new one."""
        text = msgspec.json.encode(acknowledgement)
        os.pwrite(self._file, text.ljust(_LENGTH), 0)


def seen(run: Path) -> list[Seen]:
    """The last word of every signer that ever ran here, by index."""
    found = []
    for path in sorted((run / "signers").glob("*.json")):
        try:
            with path.open("rb") as file:
                alive = _locked(file.fileno())
                acknowledgement = msgspec.json.decode(file.read(_LENGTH), type=Acknowledgement)
        except (OSError, msgspec.MsgspecError):
            continue  # just created, or of another version: it has not spoken yet
        found.append(Seen(acknowledgement, alive))
    return sorted(found, key=lambda one: one.acknowledgement.index)


_LENGTH = 4096
# struct flock: an exclusive lock from the start to the end, whatever that is.
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _locked(descriptor: int) -> bool:
    # Asked for, not tried: whoever looks must not be in the way of a signer that starts.
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    kind: int = struct.unpack_from("h", answer)[0]
    return kind != fcntl.F_UNLCK
