"""What runs on this host and where it listens: [hsm] [store] [signer] [keeper] [repository]
[client].
"""

import msgspec

from kmsd.settings.table import Settings


class Hsm(Settings, frozen=True):
    """The PKCS#11 module and token."""

    module: str = "/usr/lib/softhsm/libsofthsm2.so"
    token: str = "kmsd"  # noqa: S105  a token label
    pin: str = "credential:hsm-pin"
    """Where the user PIN is: path of a file, or credential:NAME."""
    threads: int = 1
    """HSM sessions of one signer that sign at the same time."""
    template: dict[str, bool | int | str] = msgspec.field(default_factory=dict)
    """Attributes added to or replacing the default private key template, by CKA_ name."""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    """Variables the module wants (SOFTHSM2_CONF, ...), set before it is loaded."""


class Store(Settings, frozen=True):
    url: str = ""
    """SQLAlchemy URL, sqlite:////... or postgresql://...; empty: SQLite in the state folder."""
    password: str = ""
    """Where PostgreSQL's password is: path of a file, or credential:NAME; empty: none is sent."""


class Tls(Settings, frozen=True):
    """Files of a mutual TLS listener or client."""

    certificate: str
    key: str
    """Path of the PEM private key (a listener's own, never a signing key), or credential:NAME."""
    ca: str
    """PEM file: whose certificates the other side may present."""


class Signer(Settings, frozen=True):
    listen: tuple[str, ...] = ("127.0.0.1:7443",)
    """host:port (mutual TLS needed unless loopback and `plaintext`)."""
    processes: int = 0
    """Signer processes under `kmsd run`; 0: one per core."""
    tls: Tls | None = None
    plaintext: bool = False
    """Serve without TLS, on loopback only: for measurements."""
    frame_items: int = 256
    """PASSporTs in one request, at most."""
    freshness_seconds: int = 60
    """How far a caller's iat may be from now (RFC 8224 section 6.2 step 4)."""
    trace_every: int = 10_000
    """One answer in so many, and the first of each epoch, leaves a line in the log that says how
    long each stage of it took; 0: none."""


class Keeper(Settings, frozen=True):
    listen: str = "unix:/run/kmsd/keeper.sock"
    socket_mode: str = "0660"
    tick_seconds: float = 30.0
    """How often the rotation plan is made when nothing else wakes the keeper."""


class Repository(Settings, kw_only=True, frozen=True):
    url: str = ""
    """Where chains are put: a directory as file:///..., or object storage (s3://, gs://, az://)."""
    options: dict[str, str] = msgspec.field(default_factory=dict)
    """Options of the object store (region, endpoint, ...); never secrets."""
    public_url: str
    """https URL under which what was put there is public; ends with a slash."""
    listen: str = "0.0.0.0:8443"
    certificate: str = ""
    key: str = ""
    tls_ca: str = ""
    """PEM file to check the public URL's HTTPS certificate with; empty: the system's."""
    max_age_seconds: int = 604800
    """Cache-Control max-age of a chain (at least a day, ATIS-1000074)."""


class Client(Settings, frozen=True):
    """How kmsctl reaches the signers."""

    targets: tuple[str, ...] = ()
    tls: Tls | None = None
