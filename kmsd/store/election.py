"""Which keeper acts on a store: one at a time, and what it writes is fenced.

A keeper takes the store's seat (a lock of the database: `sqlite`, `postgres`), brings the schema
up to date and counts its term. The number of the term is read again under the write lock by every
transaction: whatever becomes of the lock, what was written before a successor is there for it to
see, and nothing is written after.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from kmsd.errors import KmsdError, Misconfigured, Precondition, Unavailable
from kmsd.store import postgres, schema, sqlite, tables


@dataclass(frozen=True)
class Term:
    """One keeper's time of acting. generation: its number, greater than all before it."""

    generation: int
    _seat: sqlite.Seat | postgres.Seat

    @property
    def over(self) -> bool:
        """Whether it is known to have ended; asks nobody."""
        return self._seat.lost

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is this term's. Raises Unavailable KEEPER_SEAT_LOST."""
        with self._seat.writing() as connection:
            newest = connection.execute(sa.select(tables.terms.c.generation)).scalar_one()
            if newest != self.generation:
                raise Unavailable(
                    "KEEPER_SEAT_LOST",
                    f"Another keeper acts on the store since (term {newest}, after our term "
                    f"{self.generation}).",
                    next_step="This one changes nothing until it acts again.",
                )
            yield connection


def begin(seat: sqlite.Seat | postgres.Seat, token: str) -> Term:
    """Begins the term of who has the seat. Raises Misconfigured STORE_SCHEMA_NEWER."""
    row = tables.terms.c
    with seat.writing() as connection:
        schema.migrate(connection)
        generation = int(connection.execute(sa.select(row.generation)).scalar_one()) + 1
        connection.execute(
            sa.update(tables.terms).values(
                generation=generation, token=token, host=_host(), pid=os.getpid()
            )
        )
    return Term(generation, seat)


def refusal(connection: sa.Connection, token: str) -> KmsdError:
    """Why the seat is not to be had: who has it, as far as that is stored already."""
    if not schema.inspected(connection).current:
        return Precondition("KEEPER_ALREADY_RUNNING", "Another keeper acts on this store.")
    holder = connection.execute(sa.select(tables.terms)).one()
    if holder.token != token:
        return Misconfigured(
            "STORE_OF_ANOTHER_TOKEN",
            f"A keeper on {holder.host} keeps the HSM token {holder.token!r} in this store, and "
            f"this one's is {token!r}.",
            next_step="Give each token a store of its own: a database, or a schema of one "
            "(?options=-csearch_path%3DNAME).",
        )
    return Precondition(
        "KEEPER_ALREADY_RUNNING",
        f"The keeper on {holder.host} (process {holder.pid}) acts on this store.",
        next_step="Ask that one for changes; this one takes over when it ends.",
        host=holder.host,
        pid=str(holder.pid),
        term=str(holder.generation),
    )


def _host() -> str:
    return socket.gethostname()[:255]
