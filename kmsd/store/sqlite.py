"""SQLite under the store: files, transactions, locks, and what its errors mean.

The only file that knows SQLite; `postgres` is the same for another database. Nothing here
knows what is stored.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from kmsd.errors import KmsdError, Misconfigured, Precondition, Unavailable

BUSY_SECONDS = 5.0
"""How long a writer waits for another process's transaction."""

WRITING = "kmsd_writing"
"""Execution option of a connection that will write: it takes the write lock at BEGIN."""


@dataclass(frozen=True)
class Seat:
    """The kernel's lock on this store's keeper, held by this process: it cannot be lost."""

    _engine: sa.Engine
    lost = False

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that holds the write lock."""
        return self._engine.begin()


@dataclass(frozen=True)
class Sqlite:
    """The database file that `url` names."""

    url: sa.URL

    shared = False

    @property
    def path(self) -> Path:
        return Path(self.url.database or "")

    def engine(self) -> sa.Engine:
        """Connections to the file, which is created (mode 0600) when it is missing.

        Raises Misconfigured when it cannot be: STORE_URL_INVALID, STORE_FOLDER_MISSING,
        STORE_CANNOT_OPEN; Unavailable STORE_DISK_FULL.
        """
        if not self.path.is_absolute() or self.url.query.keys() - {"timeout"}:
            raise Misconfigured(
                "STORE_URL_INVALID",
                "The store's URL names no SQLite file by an absolute path.",
                next_step="Write sqlite:////absolute/path/kmsd.db, four slashes in all.",
            )
        self._private()
        return self._connected(self.url)

    def engine_for_looking(self) -> sa.Engine:
        """Connections that can only read; the file must exist. Raises Misconfigured."""
        if not self.path.is_file():
            raise Misconfigured(
                "STORE_MISSING",
                f"There is no store at {self.path} yet.",
                next_step="The keeper makes it when it starts for the first time.",
            )
        quoted = str(self.path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        url = self.url.set(database=f"file:{quoted}", query={"mode": "ro", "uri": "true"})
        return self._connected(url, wal=False)

    @staticmethod
    def reader(engine: sa.Engine) -> sa.Engine:
        return engine

    @staticmethod
    def writer(engine: sa.Engine) -> sa.Engine:
        return engine.execution_options(**{WRITING: True})

    @contextlib.contextmanager
    def seat(self, engine: sa.Engine, token: str) -> Iterator[Seat]:
        """The keeper's seat on this store. Raises Precondition KEEPER_ALREADY_RUNNING, or as
        `engine` when the lock file cannot be made.

        The lock is the kernel's (flock), so it ends with the process however that ends.
        token: label of the HSM token this keeper acts on; named to whom it refuses.
        """
        lock = self.path.with_name(self.path.name + ".keeper")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, other = os.pread(descriptor, 256, 0).decode(errors="replace").partition(" ")
            os.close(descriptor)
            raise Precondition(
                "KEEPER_ALREADY_RUNNING",
                f"Another keeper (process {pid}, token {other.strip()!r}) acts on {self.path}.",
                next_step="Stop that one first: systemctl stop kmsd-keeper.",
                pid=pid,
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {token}\n".encode(), 0)
            yield Seat(self.writer(engine))
        finally:
            # The file stays: unlinking it would let two keepers lock two files of one name.
            os.close(descriptor)

    def damage(self, connection: sa.Connection) -> tuple[str, ...]:
        """What SQLite's own check finds wrong with the file; () when nothing is."""
        found = connection.exec_driver_sql("PRAGMA quick_check(10)").scalars().all()
        return () if found == ["ok"] else tuple(map(str, found))

    def translated(self, error: Exception) -> KmsdError:
        """What a database error means for a person. Never holds the statement's values."""
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0)
        name = getattr(cause, "sqlite_errorname", type(cause).__name__)
        match code & 0xFF:
            case sqlite3.SQLITE_FULL:
                return _disk_full(self.path)
            case sqlite3.SQLITE_IOERR:
                if _no_space(self.path):
                    return _disk_full(self.path)
                return Unavailable(
                    "STORE_IO_ERROR",
                    f"The store {self.path} could not be read or written ({name}).",
                    next_step="Look at the disk: dmesg, smartctl, limits of the process.",
                )
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return Unavailable(
                    "STORE_BUSY", f"Another process keeps the store {self.path} locked."
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return _cannot_open(self.path, name)
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return Misconfigured(
                    "STORE_CORRUPTED",
                    f"The store {self.path} is damaged or is no database ({name}).",
                    next_step="Keep the file, restore the last backup; the HSM keeps the keys.",
                )
            case sqlite3.SQLITE_CONSTRAINT if "credentials.profile" in str(cause):
                return Precondition(
                    "PROFILE_ALREADY_ACTIVE",
                    "A profile would have two active credentials.",
                    next_step="Retire the one that is active in the same change.",
                )
            case sqlite3.SQLITE_CONSTRAINT:
                return Precondition("STORE_CONFLICT", "What is stored is there already.")
            case sqlite3.SQLITE_ERROR:
                return Misconfigured(
                    "STORE_DAMAGED",
                    f"The store {self.path} does not have the tables it should have.",
                    next_step="Restore the last backup.",
                )
        return Unavailable("STORE_FAILED", f"The store {self.path} failed ({name}).")

    def _connected(self, url: sa.URL, *, wal: bool = True) -> sa.Engine:
        # isolation_level None: the driver begins no transaction of its own, see _begin.
        timeout = float(str(self.url.query.get("timeout", BUSY_SECONDS)))
        engine = sa.create_engine(
            url, connect_args={"isolation_level": None, "timeout": timeout}, hide_parameters=True
        )
        sa.event.listen(engine, "connect", _with_wal if wal else _without_wal)
        sa.event.listen(engine, "begin", _begin)
        return engine

    def _private(self) -> None:
        # SQLite gives the -wal and -shm files the mode of the database file.
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(descriptor).st_mode & 0o077:
                    os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise Misconfigured(
                "STORE_FOLDER_MISSING",
                f"The folder {self.path.parent} for the store does not exist.",
                next_step=f"install -d -m 0700 -o kmsd {self.path.parent}",
            ) from None
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> KmsdError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _disk_full(self.path)
        return _cannot_open(self.path, error.strerror or "")


def _with_wal(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("PRAGMA foreign_keys = ON")


def _without_wal(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA query_only = ON")


def _begin(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later cannot wait for another writer: SQLite
    # answers "locked" at once. So who means to write takes the lock before reading.
    writing = connection.get_execution_options().get(WRITING)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _disk_full(path: Path) -> Unavailable:
    return Unavailable(
        "STORE_DISK_FULL",
        f"The disk that holds the store {path} is full; nothing was changed.",
        next_step=f"Make room: df {path.parent}",
    )


def _no_space(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < 1 << 20
    except OSError:
        return False


def _cannot_open(path: Path, why: str) -> Misconfigured:
    return Misconfigured(
        "STORE_CANNOT_OPEN",
        f"The store {path} cannot be opened for writing ({why}).",
        next_step=f"Make the file and its folder writable for this user: ls -ld {path.parent}",
    )
