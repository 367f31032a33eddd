"""The store's interface: values in, values out, one transaction a call.

Every change names the version it was made from, so that of two writers one is refused and
nothing is lost. All calls block and may come from any thread. Any of them may raise
Unavailable (STORE_UNREACHABLE, STORE_DISK_FULL, STORE_READ_ONLY, STORE_BUSY, STORE_IO_ERROR) or
Misconfigured (STORE_CORRUPTED, STORE_DAMAGED, STORE_CANNOT_OPEN, STORE_LOGIN_REFUSED); then
nothing was changed, unless the connection ended while a change was being made final: reading
again tells.
"""

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Self

import msgspec
import sqlalchemy as sa

from kmsd.errors import Invalid
from kmsd.model import Account, Active, Credential, RevocationList, TrustList
from kmsd.store import journal, rows, tables
from kmsd.store.agenda import Agenda
from kmsd.store.database import Database, Password, no_password
from kmsd.store.election import Term
from kmsd.store.journal import Event


class Store:
    """An open store: from `open`, `at` or `look`, closed by `close` or as a context manager.

    agenda: what is due when, and what decides it besides the credentials.

    url: in SQLAlchemy's form, sqlite:////... or postgresql://...; never with a password.
    password: gives PostgreSQL's, each time a connection is made; "": libpq knows it, or none is
    needed. Each of the three raises Misconfigured (STORE_URL_INVALID, STORE_URL_UNSUPPORTED,
    STORE_FOLDER_MISSING, ...) or Unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.agenda = Agenda(database)

    @classmethod
    def open(cls, url: str, password: Password = no_password) -> Self:
        """For one process that is alone with the store: it may write at any time.

        The schema is brought up to date. Raises also Misconfigured STORE_SCHEMA_NEWER.
        """
        return cls(Database.open(url, password))

    @classmethod
    def at(cls, url: str, password: Password = no_password) -> Self:
        """For a keeper: it may read, and writes while it is `acting`.

        Also when a database server is not there yet: then calls raise until it is.
        """
        return cls(Database.at(url, password))

    @classmethod
    def look(cls, url: str, password: Password = no_password) -> Self:
        """Open an existing, up-to-date store for reading only: nothing is made or migrated.

        Raises also Misconfigured STORE_MISSING or STORE_SCHEMA_OLDER.
        """
        return cls(Database.look(url, password))

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def damage(self) -> tuple[str, ...]:
        """What the database finds wrong with its own file; () when nothing is."""
        return self._database.damage()

    @property
    def shared(self) -> bool:
        """Whether keepers of several hosts can be at it, of which one acts."""
        return self._database.shared

    def acting(self, token: str) -> AbstractContextManager[Term]:
        """Be the one keeper that acts on this store, while inside; its schema is brought up to
        date first.

        token: label of the HSM token. Raises Precondition KEEPER_ALREADY_RUNNING, Misconfigured
        (STORE_OF_ANOTHER_TOKEN, STORE_SCHEMA_NEWER, STORE_DATABASE_UNFIT). On a shared store the
        term can end before the context does: then every change raises Unavailable
        KEEPER_SEAT_LOST, and nothing is changed.
        """
        return self._database.acting(token)

    @property
    def acts(self) -> bool:
        """Whether changes can be made, as far as is known; asks nobody."""
        return self._database.acts

    def require_acting(self) -> None:
        """Raises Unavailable KEEPER_STANDS_BY unless `acts`."""
        self._database.require_acting()

    def resign(self) -> None:
        """Makes no more changes from now on, whatever the database would let us do."""
        self._database.resign()

    def check_acting(self) -> None:
        """Asks the database whether this process acts, as every change does. Raises as they do."""
        with self._database.writing():
            pass

    # Credentials

    def insert(self, credential: Credential, *events: Event) -> Credential:
        """Store a new credential. Raises Precondition STORE_CONFLICT when id or key_id is taken."""
        with self._database.writing() as connection:
            connection.execute(sa.insert(tables.credentials).values(rows.columns(credential)))
            rows.changed(connection, (credential,))
            journal.append(connection, events)
        return credential

    def save(self, credential: Credential, *events: Event) -> Credential:
        """Store what became of a credential; the result has the next version.

        Raises Precondition STORE_CONFLICT when the stored version is not the credential's,
        PROFILE_ALREADY_ACTIVE, or NotFound CREDENTIAL_UNKNOWN.
        """
        return self.save_all([credential], *events)[0]

    def save_all(self, credentials: Iterable[Credential], *events: Event) -> tuple[Credential, ...]:
        """Store several credentials, all or none, with the events that tell of it.

        Raises as `save`. The results are in the order given.
        """
        saved = tuple(
            msgspec.structs.replace(credential, version=credential.version + 1)
            for credential in credentials
        )
        with self._database.writing() as connection:
            # Who becomes active comes last: the constraint holds after every statement.
            for credential in sorted(saved, key=lambda saved: isinstance(saved.state, Active)):
                rows.update(connection, credential)
            rows.changed(connection, saved)
            journal.append(connection, events)
        return saved

    def credential(self, id: str) -> Credential:
        """The credential with this id. Raises NotFound CREDENTIAL_UNKNOWN."""
        found = self._credentials(tables.credentials.c.id == id)
        if not found:
            raise rows.unknown(id)
        return found[0]

    def find(self, prefix: str) -> Credential:
        """The one credential whose id begins so.

        Raises NotFound CREDENTIAL_UNKNOWN, Invalid CREDENTIAL_AMBIGUOUS or CREDENTIAL_ID_INVALID.
        """
        prefix = prefix.strip().lower()
        if not re.fullmatch(r"[0-9a-f]{1,16}", prefix):
            raise Invalid(
                "CREDENTIAL_ID_INVALID",
                "A credential's id, or its beginning, is 1 to 16 hex digits.",
            )
        match self._credentials(tables.credentials.c.id.startswith(prefix), limit=2):
            case ():
                raise rows.unknown(prefix)
            case (credential,):
                return credential
        raise Invalid(
            "CREDENTIAL_AMBIGUOUS",
            f"More than one credential's id begins with {prefix}.",
            next_step="Give more digits.",
        )

    def credentials(
        self, profile: str | None = None, *, include_destroyed: bool = False
    ) -> tuple[Credential, ...]:
        """Credentials, newest first; of one profile when it is given."""
        conditions = []
        if profile is not None:
            conditions.append(tables.credentials.c.profile == profile)
        if not include_destroyed:
            conditions.append(tables.credentials.c.state != "destroyed")
        return self._credentials(*conditions)

    def signable(self) -> tuple[Credential, ...]:
        """What signers may have been told to sign with: active, or about to be."""
        return self._credentials(tables.credentials.c.state.in_(("active", "published")))

    def active(self, profile: str) -> Credential | None:
        """What the profile signs with now."""
        found = self._credentials(
            tables.credentials.c.profile == profile, tables.credentials.c.state == "active"
        )
        return found[0] if found else None

    def all_active(self) -> tuple[Credential, ...]:
        """What every profile signs with now: the next keyring."""
        return self._credentials(tables.credentials.c.state == "active")

    # ACME accounts

    def account(self, profile: str, issuer: str) -> Account | None:
        """The profile's account at that STI-CA."""
        row = tables.accounts.c
        query = sa.select(row.document).where(row.profile == profile, row.issuer == issuer)
        with self._database.reading() as connection:
            found = rows.values(connection, Account, query)
        return found[0] if found else None

    def accounts(self) -> tuple[Account, ...]:
        """All of them, by profile and issuer."""
        row = tables.accounts.c
        query = sa.select(row.document).order_by(row.profile, row.issuer)
        with self._database.reading() as connection:
            return rows.values(connection, Account, query)

    def save_account(self, account: Account, *events: Event) -> Account:
        """Store an account; at most one for a profile at an issuer, the last one stored."""
        key = {"profile": account.profile, "issuer": account.issuer}
        with self._database.writing() as connection:
            rows.put(connection, tables.accounts, key, {"document": rows.document(account)})
            journal.append(connection, events)
        return account

    # Trust material

    def trust_list(self, authority: str) -> TrustList | None:
        """The trusted STI-CA list last accepted from this STI-PA."""
        with self._database.reading() as connection:
            return rows.trusted(connection, TrustList, authority)

    def save_trust_list(self, trust_list: TrustList, *events: Event) -> TrustList:
        """Keep a list. Raises Precondition TRUST_ROLLED_BACK when a later one is there."""
        with self._database.writing() as connection:
            rows.trust(connection, trust_list, trust_list.sequence)
            journal.append(connection, events)
        return trust_list

    def revocation_list(self, authority: str) -> RevocationList | None:
        """The CRL last accepted from this STI-PA."""
        with self._database.reading() as connection:
            return rows.trusted(connection, RevocationList, authority)

    def save_revocation_list(self, crl: RevocationList, *events: Event) -> RevocationList:
        """Keep a CRL. Raises Precondition TRUST_ROLLED_BACK when a later one is there."""
        with self._database.writing() as connection:
            rows.trust(connection, crl, int(crl.number))
            journal.append(connection, events)
        return crl

    def restart_trust(
        self, trust_list: TrustList, crl: RevocationList | None, *events: Event
    ) -> None:
        """Keep a list, and a CRL if one is given, whatever numbers the ones before had."""
        with self._database.writing() as connection:
            rows.trust(connection, trust_list, trust_list.sequence, restart=True)
            if crl is not None:
                rows.trust(connection, crl, int(crl.number), restart=True)
            journal.append(connection, events)

    # Epoch and journal

    def epoch(self) -> int:
        """The last epoch given out; 0: none yet."""
        with self._database.reading() as connection:
            return int(connection.execute(sa.select(tables.epochs.c.epoch)).scalar_one())

    def next_epoch(self, *, after: int = 0) -> int:
        """A new epoch, greater than all before it and than `after`.

        after: the epoch of the keyring on disk, which is ahead of a store from a backup.
        """
        with self._database.writing() as connection:
            last = sa.select(tables.epochs.c.epoch).with_for_update()
            epoch = max(int(connection.execute(last).scalar_one()), after) + 1
            connection.execute(sa.update(tables.epochs).values(epoch=epoch))
        return epoch

    def record(self, *events: Event) -> None:
        """Append to the journal."""
        with self._database.writing() as connection:
            journal.append(connection, events)

    def events(
        self, credential: str | None = None, *, profile: str | None = None, limit: int = 100
    ) -> tuple[Event, ...]:
        """The journal's last events, newest first."""
        with self._database.reading() as connection:
            return journal.newest(connection, credential, profile, limit)

    def _credentials(
        self, *conditions: sa.ColumnElement[bool], limit: int | None = None
    ) -> tuple[Credential, ...]:
        row = tables.credentials.c
        query = sa.select(row.document).where(*conditions).limit(limit)
        with self._database.reading() as connection:
            return rows.values(connection, Credential, query.order_by(row.created.desc(), row.id))
