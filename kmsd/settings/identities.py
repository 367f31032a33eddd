"""[profiles.*] and [[callers]]: who signs, and for whom."""

from kmsd.settings.table import Settings


class Subject(Settings, frozen=True):
    """Distinguished name in the CSR; CN is always `SHAKEN <SPC> <suffix>` (ATIS-1000080)."""

    country: str = "US"
    organization: str = ""
    state: str = ""
    locality: str = ""


class Policy(Settings, frozen=True):
    """When a profile's credential is renewed, and how long what it leaves behind is kept.

    An STI-CA that suggests a time (RFC 9773) is followed; the fractions are for the others.
    """

    renew_at: float = 0.66
    """Fraction of the lifetime after which a new credential is enrolled."""
    jitter: float = 0.05
    """Fraction of the lifetime over which the renewals of many profiles are spread from there."""
    floor: float = 0.1
    """Fraction of the lifetime that is left when a renewal waits for nothing any more: neither
    for the time an STI-CA suggests, nor for a window, nor after a failure."""
    windows: tuple[str, ...] = ()
    """When renewals are begun, in UTC: `Mon-Fri 08:00-16:00`, `Sat,Sun 22:00-04:00`. None: any
    time."""
    key_pool: int = 0
    """Spare keys of the profile that are made in advance."""
    hold_key_days: float = 1.0
    """Days between retirement and destruction of a key (room for rollback)."""
    restore_days: float = 7.0
    """Days between a destroy and the moment it becomes final."""


class Profile(Settings, frozen=True):
    """One service provider identity."""

    spc: str
    """Service provider code: digits and upper-case letters (ATIS-1000080 6.4.1)."""
    authority: str
    issuers: tuple[str, ...]
    """Names of STI-CAs; new certificates come from the first one."""
    account_id: str = ""
    """Our account at the STI-PA for this SPC; empty: the SPC itself."""
    subject: Subject = Subject()
    policy: Policy = Policy()


class Caller(Settings, frozen=True):
    """A grant: which authentication server may have what signed. No grant: no signature."""

    id: str
    """Identity in the client certificate: `spiffe://...` or other URI, a DNS name, or CN=..."""
    profiles: tuple[str, ...]
    """Profile names, or "*"."""
    types: tuple[str, ...] = ("shaken",)
    """PASSporT types: shaken, base, div, rph, rcd."""
    attest: str = "C"
    """Highest attestation this caller is granted: A, B or C."""
