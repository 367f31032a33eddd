"""Which signers are alive on this host, and under which epoch each of them signs.

A signer holds a lock on `<run>/signers/<index>.json` as long as its process lives, and writes
its acknowledgement into it. The keeper reads them before it calls a switch done. A signer that
is dead need not acknowledge: when it starts, it reads the newest keyring first.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType

import msgspec

from kmsd.errors import Misconfigured
from kmsd.model import Value

NOT_SERVING = -1
"""In place of an epoch."""


class Acknowledgement(Value, frozen=True):
    """One signer's word. at, started_at: seconds UTC. profiles: how many it can sign for.

    epoch: NOT_SERVING before it has a keyring to sign with. trouble: why it does not serve, empty
    when it does.
    """

    index: int
    pid: int
    epoch: int
    at: int
    started_at: int
    profiles: int
    trouble: str = ""


class Seen(Value, frozen=True):
    """An acknowledgement as the keeper finds it; alive: the signer's process holds its lock."""

    acknowledgement: Acknowledgement
    alive: bool


class Presence:
    """The signer's side: held open for the life of the process.

    Raises Misconfigured when another live process has the same index.
    """

    def __init__(self, run: Path, index: int) -> None:
        folder = run / "signers"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / f"{index}.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
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


_LENGTH = 2048


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
