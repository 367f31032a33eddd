"""Chains in a local directory, written so that a crash or a full disk leaves no half of one.

obstore's local store is not used for this: it writes beside and links, but syncs neither file
nor directory, takes its mode from the umask, and leaves the rest of a failed write behind.
"""

import asyncio
import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from kmsd.errors import KmsdError, Misconfigured, Precondition, Unavailable

LIMIT = 65_536
"""Octets that are read back, at most; more is no chain of ours."""


class Directory:
    """The directory at `path`. Made when it is missing, but not its parents."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def create(self, name: str, chain: bytes) -> bool:
        """Writes a new file, mode 0644, on disk when this returns; False when it exists.

        Raises Unavailable (REPOSITORY_DISK_FULL, REPOSITORY_UNAVAILABLE), Misconfigured
        (REPOSITORY_NOT_WRITABLE).
        """
        try:
            return await asyncio.to_thread(self._create, name, chain)
        except OSError as error:
            raise self._translated(error) from error

    async def read(self, name: str) -> bytes:
        """The file's octets. Raises as `create`, and Precondition when it is no regular file."""
        try:
            return await asyncio.to_thread(self._read, name)
        except OSError as error:
            raise self._translated(error) from error

    async def delete(self, name: str) -> None:
        """Removes the file, if it is there. Raises as `create`."""
        try:
            await asyncio.to_thread(self._delete, name)
        except OSError as error:
            raise self._translated(error) from error

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self._path / name).unlink()

    def _create(self, name: str, chain: bytes) -> bool:
        with suppress(FileExistsError):
            self._path.mkdir(mode=0o755)
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # A leading dot, and no .pem at the end: never served, whatever happens to it.
        draft = f".{name}.{secrets.token_hex(8)}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(draft, flags, 0o600, dir_fd=folder)
            try:
                _write(file, chain)
            finally:
                os.close(file)
            # A link, not a rename: it fails when the name is taken, whoever took it when.
            os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
            new = True
        except FileExistsError:
            new = False
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
            # Also for a name that exists: whoever linked it may have crashed before this.
            os.fsync(folder)
            os.close(folder)
        return new

    def _read(self, name: str) -> bytes:
        file = os.open(self._path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.ELOOP, "not a regular file")
            return os.read(file, LIMIT + 1)
        finally:
            os.close(file)

    def _translated(self, error: OSError) -> KmsdError:
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                return Unavailable(
                    "REPOSITORY_DISK_FULL",
                    f"There is no room for a chain in {self._path}; nothing was published.",
                    next_step="Make room there; kmsd tries again.",
                )
            case errno.ELOOP:
                return Precondition(
                    "X5U_TAKEN",
                    f"There is something in {self._path} that is not a regular file.",
                    next_step="Remove it: nobody but kmsd may write there.",
                )
            case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOENT | errno.ENOTDIR:
                return Misconfigured(
                    "REPOSITORY_NOT_WRITABLE",
                    f"Chains cannot be written to {self._path}: {error.strerror}.",
                    next_step="Create it, and let the keeper's user write there.",
                )
            case _:
                return Unavailable(
                    "REPOSITORY_UNAVAILABLE",
                    f"Chains cannot be written to {self._path}: {error.strerror}.",
                )


def _write(file: int, chain: bytes) -> None:
    rest = memoryview(chain)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fchmod(file, 0o644)
    os.fsync(file)
