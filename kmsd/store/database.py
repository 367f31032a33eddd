"""A database under the store: transactions, and errors translated once.

The kind of database is chosen here by the URL; what is peculiar to it is in its own file.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NoReturn, Self

import sqlalchemy as sa

from kmsd.errors import Misconfigured, Unavailable
from kmsd.store import election, postgres, schema, sqlite

Password = Callable[[], str]
Transactions = Callable[[], AbstractContextManager[sa.Connection]]


def no_password() -> str:
    """For a database that asks for none, or gets it from libpq's password file."""
    return ""


class Database:
    """Connections to one database, for several threads."""

    def __init__(
        self, backend: sqlite.Sqlite | postgres.Postgres, engine: sa.Engine, write: Transactions
    ) -> None:
        self._backend = backend
        self._engine = engine
        self._reader = backend.reader(engine)
        self._write = write
        self._term: election.Term | None = None

    @classmethod
    def open(cls, url: str, password: Password = no_password) -> Self:
        """Open the database for one who is alone with it, and bring its schema up to date."""
        backend = _backend(url, password)
        engine = backend.engine()
        database = cls(backend, engine, backend.writer(engine).begin)
        with database._closed_on_error(), database.writing() as connection:
            schema.migrate(connection)
        return database

    @classmethod
    def at(cls, url: str, password: Password = no_password) -> Self:
        """For a keeper: to read, and to write while it acts. A server is not asked yet."""
        backend = _backend(url, password)
        return cls(backend, backend.engine(), _stands_by)

    @classmethod
    def look(cls, url: str, password: Password = no_password) -> Self:
        """Open an existing database for reading only.

        Raises Misconfigured STORE_MISSING or STORE_SCHEMA_OLDER besides what `open` raises.
        """
        backend = _backend(url, password)
        database = cls(backend, backend.engine_for_looking(), _only_looks)
        with database._closed_on_error(), database.reading() as connection:
            found = schema.inspected(connection)
        with database._closed_on_error():
            if not found.revision and backend.shared:
                raise Misconfigured(
                    "STORE_MISSING",
                    "There is no store in the database yet.",
                    next_step="The keeper makes it when it starts for the first time.",
                )
            if not found.current:
                raise Misconfigured(
                    "STORE_SCHEMA_OLDER",
                    f"The store has schema {found.revision or 'none'}, this kmsd {found.head}.",
                    next_step="The keeper brings it up to date when it starts.",
                )
        return database

    @property
    def shared(self) -> bool:
        return self._backend.shared

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def acting(self, token: str) -> Iterator[election.Term]:
        with contextlib.ExitStack() as held:
            with self._translated():
                seat = held.enter_context(self._backend.seat(self._engine, token))
                term = election.begin(seat, token) if seat else None
            if term is None:
                with self.reading() as connection:
                    raise election.refusal(connection, token)
            before, self._write, self._term = self._write, term.writing, term
            try:
                yield term
            finally:
                self._write, self._term = before, None

    @property
    def acts(self) -> bool:
        if self._term is not None and self._term.over:
            return False
        return self._write not in (_stands_by, _only_looks)

    def require_acting(self) -> None:
        if not self.acts:
            _stands_by()

    def resign(self) -> None:
        self._write = _stands_by

    def damage(self) -> tuple[str, ...]:
        """What is wrong with the file as the database itself sees it; () when nothing is."""
        with self.reading() as connection:
            return self._backend.damage(connection)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database."""
        with self._translated(), self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its beginning."""
        with self._translated(), self._write() as connection:
            yield connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            raise self._backend.translated(error) from error
        except sa.exc.TimeoutError as error:
            raise Unavailable(
                "STORE_BUSY", "Too many threads want the store at the same time."
            ) from error

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def _stands_by() -> NoReturn:
    raise Unavailable(
        "KEEPER_STANDS_BY",
        "This keeper does not act on the store now, so it changes nothing.",
        next_step="`kmsctl status` says which one acts, or what is in the way.",
    )


def _only_looks() -> NoReturn:
    raise Misconfigured("STORE_CANNOT_OPEN", "The store was opened for reading only.")


def _backend(url: str, password: Password) -> sqlite.Sqlite | postgres.Postgres:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # Not echoed: a URL may hold a password.
        raise Misconfigured(
            "STORE_URL_INVALID",
            "The store's URL cannot be read.",
            next_step="Write sqlite:////absolute/path/kmsd.db, four slashes in all.",
        ) from None
    match parsed.drivername:
        case "sqlite" | "sqlite+pysqlite":
            return sqlite.Sqlite(parsed)
        case "postgresql" | "postgresql+psycopg":
            return postgres.Postgres(parsed, password)
    raise Misconfigured(
        "STORE_URL_UNSUPPORTED",
        f"This kmsd keeps no store on {parsed.drivername!r}.",
        next_step="Write sqlite:////absolute/path/kmsd.db or postgresql://user@host/database.",
    )
