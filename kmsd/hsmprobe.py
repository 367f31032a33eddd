"""The process that looks at the HSM for `kmsd check`: a question on stdin, an answer on stdout.

The answer is the last line: modules are known to print.
"""

import os
import sys
from pathlib import Path

import msgspec

from kmsd.errors import KmsdError
from kmsd.login import open_hsm
from kmsd.settings import Hsm


class Asked(msgspec.Struct, frozen=True):
    """hsm: the settings. run: folder in which processes of this host take turns to log in."""

    hsm: Hsm
    run: str


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """module, token, serial: what it is. ours: CKA_IDs. foreign: number of other objects."""

    module: str
    token: str
    serial: str
    ours: tuple[str, ...]
    foreign: int


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """Why the HSM cannot be used, as an error has it."""

    reason: str
    message: str
    next_step: str


def main() -> None:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    try:
        answer: Seen | Trouble = look(asked)
    except KmsdError as error:
        answer = Trouble(error.reason, error.message, error.next_step)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer) + b"\n")


def look(asked: Asked) -> Seen:
    """Opens the HSM (the PIN is tried once), counts, closes. Raises as `open_hsm`."""
    run = Path(asked.run)
    before = set(run.iterdir()) if run.is_dir() else None
    try:
        with open_hsm(asked.hsm, run) as hsm:
            found = hsm.inventory()
            info = hsm.info
    finally:
        _leave_as_found(run, before)
    return Seen(info.module, info.token, info.serial, tuple(sorted(found.ours)), found.foreign)


def _leave_as_found(run: Path, before: set[Path] | None) -> None:
    # The lock file of the login must not be root's when root was the first to look.
    if before is None or os.geteuid() != 0:
        return
    owner = run.stat()
    for new in set(run.iterdir()) - before:
        os.chown(new, owner.st_uid, owner.st_gid, follow_symlinks=False)


if __name__ == "__main__":
    main()
