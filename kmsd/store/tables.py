"""The tables of the store, as SQLAlchemy Core sees them today.

A value of `model` is kept whole as a JSON document; beside it stand only the columns that
are queried or constrained. How a database got here is `migrations`' business, and a test
holds the two together.
"""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("profile", sa.String(63), nullable=False, index=True),
    sa.Column("key_id", sa.String(32), nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("not_after", sa.BigInteger, nullable=True),
    sa.Column("due", sa.BigInteger, nullable=True, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

sa.Index(
    "one_active_credential_per_profile",
    credentials.c.profile,
    unique=True,
    sqlite_where=credentials.c.state == "active",
    postgresql_where=credentials.c.state == "active",
)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("profile", sa.String(63), primary_key=True),
    sa.Column("issuer", sa.String(63), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)

health = sa.Table(
    "health",
    metadata,
    sa.Column("issuer", sa.String(63), primary_key=True),
    sa.Column("profile", sa.String(63), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)

advice = sa.Table(
    "advice",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("credential", sa.String(16), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)

spares = sa.Table(
    "spares",
    metadata,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("profile", sa.String(63), nullable=False, index=True),
    sa.Column("document", sa.Text, nullable=False),
)

trust = sa.Table(
    "trust",
    metadata,
    sa.Column("authority", sa.String(63), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("number", sa.String(49), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

epochs = sa.Table(
    "epochs",
    metadata,
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)

terms = sa.Table(
    "terms",
    metadata,
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    # SQLite numbers rows by itself only when the key is exactly INTEGER.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("profile", sa.String(63), nullable=False, index=True),
    sa.Column("credential", sa.String(16), nullable=False, index=True),
    sa.Column("what", sa.String(63), nullable=False),
    sa.Column("outcome", sa.String(63), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
