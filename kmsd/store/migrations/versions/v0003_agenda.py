"""What is due when, how STI-CAs fared, what is said of credentials, and keys made in advance."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Everything is due: the keeper looks at each credential when it begins to act."""
    op.add_column("credentials", sa.Column("due", sa.BigInteger, nullable=True))
    op.create_index("ix_credentials_due", "credentials", ["due"])
    op.execute("UPDATE credentials SET due = 0 WHERE state <> 'destroyed'")
    op.create_table(
        "health",
        sa.Column("issuer", sa.String(63), nullable=False),
        sa.Column("profile", sa.String(63), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "profile", name="pk_health"),
    )
    op.create_table(
        "advice",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("credential", sa.String(16), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("kind", "credential", name="pk_advice"),
    )
    op.create_table(
        "spares",
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("profile", sa.String(63), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_spares"),
    )
    op.create_index("ix_spares_profile", "spares", ["profile"])
