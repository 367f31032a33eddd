"""Alembic's entry point: runs the revisions on the connection that `schema` lends it.

The connection is already in a transaction that holds the write lock, so a migration is
done wholly or not at all, and no other process migrates at the same time.
"""

from alembic import context

from kmsd.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
