"""A database under the store: transactions, and errors translated once.

The kind of database is chosen here by the URL; what is peculiar to it is in its own file.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Self

import sqlalchemy as sa

from kmsd.errors import Misconfigured, Unavailable
from kmsd.store import schema, sqlite


class Database:
    """Connections to one database, for several threads."""

    def __init__(self, backend: sqlite.Sqlite, engine: sa.Engine) -> None:
        self._backend = backend
        self._engine = engine
        self._writer = engine.execution_options(**{sqlite.WRITING: True})

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the database for reading and writing, and bring its schema up to date."""
        backend = _backend(url)
        database = cls(backend, backend.engine())
        with database._closed_on_error(), database.writing() as connection:
            schema.migrate(connection)
        return database

    @classmethod
    def look(cls, url: str) -> Self:
        """Open an existing database for reading only.

        Raises Misconfigured STORE_MISSING or STORE_SCHEMA_OLDER besides what `open` raises.
        """
        backend = _backend(url)
        database = cls(backend, backend.engine_for_looking())
        with database._closed_on_error(), database.reading() as connection:
            found = schema.inspected(connection)
            if not found.current:
                raise Misconfigured(
                    "STORE_SCHEMA_OLDER",
                    f"The store has schema {found.revision or 'none'}, this kmsd {found.head}.",
                    next_step="The keeper brings it up to date when it starts.",
                )
        return database

    def close(self) -> None:
        self._engine.dispose()

    def acting(self, token: str) -> AbstractContextManager[None]:
        return self._backend.acting(token)

    def damage(self) -> tuple[str, ...]:
        """What is wrong with the file as the database itself sees it; () when nothing is."""
        with self.reading() as connection:
            return self._backend.damage(connection)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database."""
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its beginning."""
        with self._translated(), self._writer.begin() as connection:
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


def _backend(url: str) -> sqlite.Sqlite:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # Not echoed: a URL may hold a password.
        raise Misconfigured(
            "STORE_URL_INVALID",
            "The store's URL cannot be read.",
            next_step="Write sqlite:////absolute/path/kmsd.db, four slashes in all.",
        ) from None
    match parsed.get_backend_name():
        case "sqlite":
            return sqlite.Sqlite(parsed)
    raise Misconfigured(
        "STORE_URL_UNSUPPORTED",
        f"This kmsd keeps no store on {parsed.get_backend_name()!r}.",
        next_step="Write sqlite:////absolute/path/kmsd.db.",
    )
