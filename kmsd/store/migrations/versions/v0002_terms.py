"""Terms of the keepers: which one acts, and the number that fences the others."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the one row that every term counts up."""
    terms = op.create_table(
        "terms",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_terms"),
    )
    op.bulk_insert(terms, [{"name": "keeper", "generation": 0, "token": "", "host": "", "pid": 0}])
