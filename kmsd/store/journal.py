"""The journal: what happened to which credential, one event a line, only ever appended.

For people who ask later why something is as it is. Not the signing audit.
"""

import msgspec
import sqlalchemy as sa

from kmsd.model import Value
from kmsd.store import tables


class Event(Value, frozen=True):
    """Something that happened.

    at: seconds UTC. what: the verb (enroll, publish, activate, ...). outcome: "ok" or the
    reason of an error. detail: further facts, never a secret. id: given by the store, grows.
    """

    at: int
    what: str
    outcome: str = "ok"
    profile: str = ""
    credential: str = ""
    detail: dict[str, str] = msgspec.field(default_factory=dict)
    id: int = 0


def append(connection: sa.Connection, events: tuple[Event, ...]) -> None:
    """Write the events in order, in the connection's transaction."""
    for event in events:
        values = msgspec.structs.asdict(event) | {
            "detail": msgspec.json.encode(event.detail).decode()
        }
        del values["id"]
        connection.execute(sa.insert(tables.events).values(values))


def newest(
    connection: sa.Connection, credential: str | None, profile: str | None, limit: int
) -> tuple[Event, ...]:
    """The last events, newest first, of one credential or profile when it is given."""
    query = sa.select(tables.events).order_by(tables.events.c.id.desc()).limit(limit)
    if credential is not None:
        query = query.where(tables.events.c.credential == credential)
    if profile is not None:
        query = query.where(tables.events.c.profile == profile)
    return tuple(
        Event(**{**row, "detail": msgspec.json.decode(row["detail"], type=dict[str, str])})
        for row in connection.execute(query).mappings()
    )
