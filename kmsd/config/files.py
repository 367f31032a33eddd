"""Small files, read without being held up by what stands in their place."""

import os
import stat
from pathlib import Path


def read(path: Path, limit: int) -> tuple[bytes, int]:
    """The content of a regular file, cut after `limit` + 1 bytes, and its permission bits.

    Raises FileNotFoundError, or OSError with a `strerror` for people.
    """
    try:
        # Not blocking, lest a pipe in the place of the file stops the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:
        raise OSError(0, "a path has no NUL in it") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(0, "no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1), stat.S_IMODE(mode)
    finally:
        os.close(descriptor)
