"""Which schema a database has, and bringing it to the one this code knows.

Alembic does the work, from the revisions in `migrations`; no alembic.ini is needed.
Going back is not offered: a newer database is refused, never cut down.
"""

from dataclasses import dataclass
from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError

from kmsd.errors import Misconfigured


@dataclass(frozen=True)
class Schema:
    """revision: what the database has ("" when it is empty); head: what this code wants."""

    revision: str
    head: str

    @property
    def current(self) -> bool:
        return self.revision == self.head


def inspected(connection: sa.Connection) -> Schema:
    """What schema the database has.

    Raises Misconfigured STORE_SCHEMA_NEWER when this code does not know it.
    """
    revision = MigrationContext.configure(connection).get_current_revision() or ""
    scripts = ScriptDirectory.from_config(configuration())
    schema = Schema(revision, scripts.get_current_head() or "")
    if revision and not _known(scripts, revision):
        raise Misconfigured(
            "STORE_SCHEMA_NEWER",
            f"The store has schema {revision}, and this kmsd knows schemas up to {schema.head}.",
            next_step="Run the kmsd that last used this store, or a newer one.",
            revision=revision,
            head=schema.head,
        )
    return schema


def migrate(connection: sa.Connection) -> None:
    """Bring the database to this code's schema, inside the connection's open transaction.

    The caller holds the write lock. Raises Misconfigured STORE_SCHEMA_NEWER.
    """
    if not inspected(connection).current:
        command.upgrade(configuration(connection), "head")


def configuration(connection: sa.Connection | None = None) -> Config:
    """Alembic's configuration; `connection` must be in a transaction."""
    config = Config()
    folder = str(files("kmsd.store") / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _known(scripts: ScriptDirectory, revision: str) -> bool:
    try:
        return scripts.get_revision(revision) is not None
    except (CommandError, ResolutionError):
        return False
