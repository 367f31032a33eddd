"""The store's other half: what is due when, and what decides it besides the credentials.

Times are seconds UTC. Every credential has a moment at which the keeper must look at it again;
an active one's is its profile's plan, and every change in the profile makes that due at once.
Raises as `records` does.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

import sqlalchemy as sa

from kmsd.issuers import Health
from kmsd.model import Active, BirthRecord, Credential, Value
from kmsd.renewal import Suggestion
from kmsd.standing import Distrusted
from kmsd.store import rows, tables
from kmsd.store.database import Database

A = TypeVar("A", Suggestion, Distrusted)
Said = Suggestion | Distrusted


class Known(Value, frozen=True):
    """All that a profile's plan is made of. credentials: newest first, none destroyed.

    suggestions, distrusted: of the active one, by its id.
    """

    profile: str
    credentials: tuple[Credential, ...]
    suggestions: dict[str, Suggestion]
    distrusted: dict[str, Distrusted]


class Spare(Value, frozen=True):
    """A key made in advance for a profile. birth: None while it is about to be made."""

    key_id: str
    profile: str
    birth: BirthRecord | None = None


class Agenda:
    """Of one store; the same rules of reading and writing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # What is due

    def due(self, now: int) -> tuple[Credential, ...]:
        """Credentials whose moment has come, but for active ones; the longest due first."""
        row = tables.credentials.c
        query = sa.select(row.document).where(row.due <= now, row.state != "active")
        with self._database.reading() as connection:
            return rows.values(connection, Credential, query.order_by(row.due, row.id))

    def plans_due(self, now: int, *, limit: int) -> tuple[str, ...]:
        """Profiles whose plan is to be made, the longest due first."""
        row = tables.credentials.c
        query = sa.select(row.profile).where(row.due <= now, row.state == "active")
        with self._database.reading() as connection:
            return tuple(
                connection.execute(query.order_by(row.due, row.profile).limit(limit)).scalars()
            )

    def known(self, profiles: Collection[str]) -> tuple[Known, ...]:
        """What the plans of these profiles are made of; nothing of one without a credential."""
        with self._database.reading() as connection:
            return _known(connection, profiles)

    def plan(self, profiles: Collection[str], decide: Callable[[Known], int | None]) -> None:
        """Has the plan of each profile made by `decide`, and keeps when it is to be made again.

        decide: gives that moment, None when only a change can make one; it must not wait, as
        nothing can be written meanwhile, so that no change goes unseen.
        """
        row = tables.credentials.c
        with self._database.writing() as connection:
            for known in _known(connection, profiles):
                connection.execute(
                    sa.update(tables.credentials)
                    .where(row.profile == known.profile, row.state == "active")
                    .values(due=decide(known))
                )

    def begin_anew(self) -> None:
        """Every plan is due, and whatever is on its way: policies may be others since the store
        was written last, and the clock may have been set back."""
        row = tables.credentials.c
        ended = ("retired", "failed", "doomed", "destroyed")
        with self._database.writing() as connection:
            connection.execute(
                sa.update(tables.credentials).where(row.state.not_in(ended)).values(due=0)
            )

    def put_off(self, credentials: Iterable[Credential]) -> None:
        """Their moments, as their states tell (and a schema that was brought up to date does
        not); not for active ones."""
        row = tables.credentials.c
        with self._database.writing() as connection:
            for one in credentials:
                connection.execute(
                    sa.update(tables.credentials)
                    .where(row.id == one.id, row.version == one.version, row.state != "active")
                    .values(due=rows.due(one))
                )

    # How STI-CAs fared

    def healths(self, profile: str | None = None) -> tuple[Health, ...]:
        """Of all STI-CAs that failed lately; for one profile, what holds for it."""
        row = tables.health.c
        query = sa.select(row.document).order_by(row.issuer, row.profile)
        if profile is not None:
            query = query.where(row.profile.in_(("", profile)))
        with self._database.reading() as connection:
            return rows.values(connection, Health, query)

    def save_health(self, health: Health) -> None:
        """Keep it; the last one of an issuer for a profile (or for all) counts."""
        key = {"issuer": health.issuer, "profile": health.profile}
        with self._database.writing() as connection:
            rows.put(connection, tables.health, key, {"document": rows.document(health)})

    def forget_health(self, issuer: str, profile: str) -> None:
        """It fares well."""
        row = tables.health.c
        with self._database.writing() as connection:
            connection.execute(
                sa.delete(tables.health).where(row.issuer == issuer, row.profile == profile)
            )

    # What is said of credentials

    def suggestion(self, credential: str) -> Suggestion | None:
        """What its STI-CA suggested last."""
        with self._database.reading() as connection:
            found = _advice(connection, Suggestion, (credential,))
        return found[0] if found else None

    def suggestions(self, credentials: Collection[str] = ()) -> tuple[Suggestion, ...]:
        """The same, of these credentials where any are given, else of all."""
        with self._database.reading() as connection:
            return _advice(connection, Suggestion, credentials or None)

    def distrusted(self, *credentials: str) -> tuple[Distrusted, ...]:
        """Those that are; of these credentials where any are given, else of all."""
        with self._database.reading() as connection:
            return _advice(connection, Distrusted, credentials or None)

    def say(self, *said: Said) -> None:
        """Keep what is said, in place of what was; the plans it concerns are due."""
        with self._database.writing() as connection:
            for each in said:
                key = {"credential": each.credential, "kind": type(each).__name__}
                rows.put(connection, tables.advice, key, {"document": rows.document(each)})
                _touch(connection, each.credential)

    def trust_again(self, credential: str) -> None:
        """It is believed again."""
        row = tables.advice.c
        with self._database.writing() as connection:
            connection.execute(
                sa.delete(tables.advice).where(
                    row.credential == credential, row.kind == Distrusted.__name__
                )
            )
            _touch(connection, credential)

    # Keys made in advance

    def spares(self, profile: str | None = None) -> tuple[Spare, ...]:
        """Keys that no credential has yet; of one profile when it is given."""
        row = tables.spares.c
        query = sa.select(row.document).order_by(row.profile, row.key_id)
        if profile is not None:
            query = query.where(row.profile == profile)
        with self._database.reading() as connection:
            return rows.values(connection, Spare, query)

    def save_spare(self, spare: Spare) -> None:
        """Keep it: before the key is made, and with its birth record afterwards."""
        rest: dict[str, str | int] = {"profile": spare.profile, "document": rows.document(spare)}
        with self._database.writing() as connection:
            rows.put(connection, tables.spares, {"key_id": spare.key_id}, rest)

    def drop_spare(self, key_id: str) -> None:
        """Its key is gone. (A credential that takes it drops it as it is inserted.)"""
        with self._database.writing() as connection:
            connection.execute(sa.delete(tables.spares).where(tables.spares.c.key_id == key_id))


def _known(connection: sa.Connection, profiles: Collection[str]) -> tuple[Known, ...]:
    row = tables.credentials.c
    query = sa.select(row.document).where(row.profile.in_(profiles), row.state != "destroyed")
    found: defaultdict[str, list[Credential]] = defaultdict(list)
    for one in rows.values(connection, Credential, query.order_by(row.created.desc(), row.id)):
        found[one.profile].append(one)
    ids = [one.id for mine in found.values() for one in mine if isinstance(one.state, Active)]
    suggestions = {one.credential: one for one in _advice(connection, Suggestion, ids)}
    distrusted = {one.credential: one for one in _advice(connection, Distrusted, ids)}
    return tuple(
        Known(
            profile,
            tuple(mine),
            {one.id: suggestions[one.id] for one in mine if one.id in suggestions},
            {one.id: distrusted[one.id] for one in mine if one.id in distrusted},
        )
        for profile, mine in found.items()
    )


def _advice(
    connection: sa.Connection, kind: type[A], credentials: Collection[str] | None = None
) -> tuple[A, ...]:
    row = tables.advice.c
    query = sa.select(row.document).where(row.kind == kind.__name__).order_by(row.credential)
    if credentials is not None:
        query = query.where(row.credential.in_(credentials))
    return rows.values(connection, kind, query)


def _touch(connection: sa.Connection, credential: str) -> None:
    row = tables.credentials.c
    connection.execute(
        sa.update(tables.credentials)
        .where(row.id == credential, row.state == "active")
        .values(due=0)
    )
