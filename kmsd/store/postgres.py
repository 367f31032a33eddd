"""PostgreSQL under the store: connections, transactions, locks, and what its errors mean.

The only file that knows PostgreSQL (15 or later). It has the public names of `sqlite`; nothing
here knows what is stored. A store is one schema of a database (search_path), so a database can
hold several. Its two advisory locks are keyed by that schema: one is the keeper's seat, of its
session; the other is taken by every transaction that writes, so that writers take turns as they
do on SQLite.

A session pooler between keeper and database must not share sessions (pgbouncer: pool_mode
session): locks belong to sessions.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.store import pgerrors

WRITING = "kmsd_writing"
"""Execution option of a connection that will write: it takes the write lock at BEGIN."""

PARAMETERS = frozenset(
    {
        *("host", "hostaddr", "port", "connect_timeout", "target_session_attrs"),
        *("load_balance_hosts", "options", "application_name", "passfile"),
        *("sslmode", "sslrootcert", "sslcrl", "sslcert", "sslkey"),
        *("channel_binding", "gssencmode", "krbsrvname"),
    }
)
"""What may stand behind the URL's question mark (libpq's names): nothing that is a secret."""

BUSY_SECONDS = 5.0
"""How long a writer waits for another transaction."""
SILENCE_SECONDS = 15
"""After so long without a word from the keeper, PostgreSQL gives its seat to another one."""

CONNECTING = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "8000",
    "application_name": "kmsd",
}
"""libpq's side of noticing a host that is gone (seconds; tcp_user_timeout: milliseconds)."""

SESSION = {"lock_timeout": "5s", "statement_timeout": "30s"}
SEATED = {
    "idle_session_timeout": f"{SILENCE_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{SILENCE_SECONDS}s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}
"""The server's side, for the session that holds the seat: a keeper that hangs is as good as
dead. The tcp_ ones do nothing on a unix socket."""

_SCHEMA = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())::int4"
_SIT = f"SELECT pg_try_advisory_lock({0x6B6D7364}, {_SCHEMA})"
_LOCK = f"SELECT pg_advisory_xact_lock({0x6B6D7365}, {_SCHEMA})"
_FIT = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), "
    "coalesce(current_schema(), '')"
)


class Seat:
    """The session that holds the keeper's lock, and writes.

    A transaction through it is made under the lock or not at all: PostgreSQL ends a session's
    transaction before it lets go of the session's locks.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._turn = threading.Lock()

    @property
    def lost(self) -> bool:
        """Whether the session is known to have ended. SQLAlchemy would begin another one."""
        return self._connection.invalidated or self._connection.closed

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock. Raises Unavailable KEEPER_SEAT_LOST."""
        if not self._turn.acquire(timeout=BUSY_SECONDS):
            raise sa.exc.TimeoutError
        try:
            if self.lost:
                raise Unavailable(
                    "KEEPER_SEAT_LOST",
                    "The session through which this keeper acted on the store has ended.",
                    next_step="It changes nothing until it acts again, which it tries by itself.",
                )
            with self._connection.begin():
                yield self._connection
        finally:
            self._turn.release()


@dataclass(frozen=True)
class Postgres:
    """The schema of the database that `url` names. password: asked for at every connect."""

    url: sa.URL
    password: Callable[[], str]

    shared = True

    def engine(self) -> sa.Engine:
        """Connections as they are needed; none is made yet. Raises Misconfigured."""
        strange = self.url.query.keys() - PARAMETERS
        if self.url.password is not None or strange:
            raise Misconfigured(
                "STORE_URL_INVALID",
                "The store's URL holds a password."
                if self.url.password is not None
                else f"The store's URL has parameters that it cannot have: {_names(strange)}.",
                next_step="Write postgresql://user@host/database and where its password is: "
                "store.password.",
            )
        return self._connected()

    engine_for_looking = engine

    @staticmethod
    def reader(engine: sa.Engine) -> sa.Engine:
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @staticmethod
    def writer(engine: sa.Engine) -> sa.Engine:
        return engine.execution_options(**_WRITER)

    @contextlib.contextmanager
    def seat(self, _engine: sa.Engine, _token: str) -> Iterator[Seat | None]:
        """The keeper's seat, None when another keeper has it. Raises Misconfigured."""
        engine = self._connected(poolclass=sa.NullPool)
        with engine.connect() as connection, _ended_at_once(connection):
            connection.execution_options(**_WRITER)
            with connection.begin():
                _check_fit(connection)
                taken = not connection.exec_driver_sql(_SIT).scalar_one()
                if not taken:
                    _set(connection.exec_driver_sql, SEATED)
            yield None if taken else Seat(connection)

    def damage(self, _connection: sa.Connection) -> tuple[str, ...]:
        """(): PostgreSQL's own checks are for those who run it (pg_amcheck)."""
        return ()

    def translated(self, error: Exception) -> KmsdError:
        """What a database error means for a person. Never holds the statement's values."""
        return pgerrors.translated(error, self._name)

    @property
    def _name(self) -> str:
        several = self.url.query.get("host", "localhost")
        host = self.url.host or (several if isinstance(several, str) else ", ".join(several))
        return f"The database {self.url.database!r} on {host}"

    def _connected(self, **pool: Any) -> sa.Engine:
        if not pool:
            # A connection that died while nobody used it is replaced before it is used.
            pool = {"pool_pre_ping": True, "pool_timeout": 10}
        given = {name: value for name, value in CONNECTING.items() if name not in self.url.query}
        engine = sa.create_engine(
            self.url.set(drivername="postgresql+psycopg"),
            connect_args=given,
            hide_parameters=True,
            **pool,
        )
        sa.event.listen(engine, "do_connect", self._with_password)
        sa.event.listen(engine, "connect", _session)
        sa.event.listen(engine, "begin", _begin)
        return engine

    def _with_password(
        self, _dialect: object, _record: object, _words: object, named: dict[str, str]
    ) -> None:
        # Here and not in the URL, which is shown in errors and logs.
        if password := self.password():
            named["password"] = password


_WRITER = {"isolation_level": "READ COMMITTED", WRITING: True}


@contextlib.contextmanager
def _ended_at_once(connection: sa.Connection) -> Iterator[None]:
    try:
        yield
    finally:
        # No ROLLBACK first: over a dead network it would only wait.
        if not connection.invalidated:
            connection.invalidate()


def _session(connection: Any, _record: object) -> None:
    _set(connection.execute, SESSION)
    # As durable as the database is set to make us, and never less: what is stored is done.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def _set(execute: Callable[[str], Any], settings: dict[str, str]) -> None:
    execute("SELECT " + ", ".join(f"set_config('{n}', '{v}', false)" for n, v in settings.items()))


def _begin(connection: sa.Connection) -> None:
    if connection.get_execution_options().get(WRITING):
        connection.exec_driver_sql(_LOCK)


def _check_fit(connection: sa.Connection) -> None:
    version, encoding, schema = connection.exec_driver_sql(_FIT).one()
    what = ""
    if version < 150_000:
        what = f"is version {version // 10_000}; 15 or later is needed"
    elif encoding != "UTF8":
        what = f"holds text in {encoding}; UTF8 is needed"
    elif not schema:
        what = "has no schema where its search_path says"
    if what:
        raise Misconfigured(
            "STORE_DATABASE_UNFIT",
            f"The store's database {what}.",
            next_step="CREATE DATABASE kmsd OWNER kmsd ENCODING 'UTF8' TEMPLATE template0",
        )


def _names(names: set[str]) -> str:
    return ", ".join(sorted(name if name.isidentifier() else "?" for name in names))
