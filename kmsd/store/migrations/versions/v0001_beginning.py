"""The first schema: credentials, accounts, trust material, the epoch and the journal."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "credentials",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("profile", sa.String(63), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_credentials"),
        sa.UniqueConstraint("key_id", name="uq_credentials_key_id"),
    )
    op.create_index("ix_credentials_profile", "credentials", ["profile"])
    op.create_index("ix_credentials_state", "credentials", ["state"])
    op.create_index(
        "one_active_credential_per_profile",
        "credentials",
        ["profile"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "accounts",
        sa.Column("profile", sa.String(63), nullable=False),
        sa.Column("issuer", sa.String(63), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("profile", "issuer", name="pk_accounts"),
    )
    op.create_table(
        "trust",
        sa.Column("authority", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("number", sa.String(49), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("authority", "kind", name="pk_trust"),
    )
    epochs = op.create_table(
        "epochs",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_epochs"),
    )
    op.bulk_insert(epochs, [{"name": "keyring", "epoch": 0}])
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("profile", sa.String(63), nullable=False),
        sa.Column("credential", sa.String(16), nullable=False),
        sa.Column("what", sa.String(63), nullable=False),
        sa.Column("outcome", sa.String(63), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_profile", "events", ["profile"])
    op.create_index("ix_events_credential", "events", ["credential"])
