"""What the lab remembers, in memory: facts only. Every status is derived from them and a clock.

Records are frozen; a change puts a new one in the place of the old. All changes happen in the
lab's one thread, and none of them waits in the middle, so none needs a lock.
"""

import secrets
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from kmsd.lab.problem import Problem

_NONCES_KEPT = 10_000


@dataclass(frozen=True)
class Account:
    """An ACME account (RFC 8555 section 7.1.2)."""

    id: str
    key: ec.EllipticCurvePublicKey
    thumbprint: bytes
    contact: tuple[str, ...]
    terms_agreed: bool
    active: bool = True
    eab_kid: str = ""


@dataclass(frozen=True)
class Outcome:
    """What validation or issuance comes to, once the clock reaches `settles_at`."""

    settles_at: float
    problem: Problem | None = None


@dataclass(frozen=True)
class Order:
    """An order, its one authorization and that one's challenge (RFC 8555 7.1.3 to 7.1.5).

    identifier: the TNAuthList as text, as it came. der: the same as bytes.
    answer: of the challenge. issuance: after finalize. certificate: its id, when there is one.
    token_ca: `ca` of the accepted SPC token.
    """

    id: str
    account: str
    identifier: str
    der: bytes
    spc: str
    expires: float
    token: str
    not_before: str = ""
    not_after: str = ""
    replaces: str = ""
    deactivated: bool = False
    answer: Outcome | None = None
    token_ca: bool = False
    issuance: Outcome | None = None
    certificate: str = ""

    def challenge_status(self, now: float) -> str:
        match self.answer:
            case None:
                return "pending"
            case Outcome(settles_at=at) if now < at:
                return "processing"
            case Outcome(problem=None):
                return "valid"
            case _:
                return "invalid"

    def authorization_status(self, now: float) -> str:
        if self.deactivated:
            return "deactivated"
        status = self.challenge_status(now)
        if status in ("pending", "processing"):
            return "expired" if now >= self.expires else "pending"
        return status

    def status(self, now: float) -> str:
        """Of the order, as RFC 8555 section 7.1.6 draws it."""
        match self.issuance:
            case Outcome(settles_at=at) if now < at:
                return "processing"
            case Outcome(problem=None):
                return "valid"
            case Outcome():
                return "invalid"
        if now >= self.expires:
            return "invalid"
        return {"pending": "pending", "valid": "ready"}.get(
            self.authorization_status(now), "invalid"
        )


@dataclass(frozen=True)
class Issued:
    """A certificate the STI-CA issued.

    chain: what is downloaded, faults and all. thumbprint: of the key in the CSR. subject: DER.
    renewal_name: by which RFC 9773 calls it; empty when it has no AKI.
    """

    id: str
    account: str
    order: str
    certificate: x509.Certificate
    chain: bytes
    thumbprint: bytes
    subject: bytes
    renewal_name: str


@dataclass(frozen=True)
class Revoked:
    """A certificate the STI-CA reported to the STI-PA for its CRL. reason: RFC 5280 code."""

    issuer: x509.Name
    serial: int
    reason: int
    at: float


@dataclass
class Book:
    """All of it. `counts` is what tests ask for."""

    accounts: dict[str, Account] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    issued: dict[str, Issued] = field(default_factory=dict)
    revoked: list[Revoked] = field(default_factory=list)
    jtis: set[str] = field(default_factory=set)
    nonces: dict[str, None] = field(default_factory=dict)
    tokens: int = 0
    bad_nonces: int = 0

    def new_nonce(self) -> str:
        nonce = secrets.token_urlsafe(16)
        self.nonces[nonce] = None
        if len(self.nonces) > _NONCES_KEPT:
            del self.nonces[next(iter(self.nonces))]
        return nonce

    def spend_nonce(self, nonce: str) -> bool:
        """True once for each nonce that was given out."""
        if nonce not in self.nonces:
            return False
        del self.nonces[nonce]
        return True

    def account_by_key(self, thumbprint: bytes) -> Account | None:
        return next((a for a in self.accounts.values() if a.thumbprint == thumbprint), None)

    def change_account(self, account: Account, **changes: object) -> Account:
        self.accounts[account.id] = replace(account, **changes)  # type: ignore[arg-type]
        return self.accounts[account.id]

    def change_order(self, order: Order, **changes: object) -> Order:
        self.orders[order.id] = replace(order, **changes)  # type: ignore[arg-type]
        return self.orders[order.id]

    def certified(self, thumbprint: bytes) -> bool:
        """Whether a certificate was issued for this key."""
        return any(each.thumbprint == thumbprint for each in self.issued.values())

    def revocation(self, certificate: x509.Certificate) -> Revoked | None:
        wanted = (certificate.issuer, certificate.serial_number)
        return next((r for r in self.revoked if (r.issuer, r.serial) == wanted), None)

    def counts(self) -> dict[str, int]:
        return {
            "accounts": len(self.accounts),
            "orders": len(self.orders),
            "certificates": len(self.issued),
            "revocations": len(self.revoked),
            "tokens": self.tokens,
            "bad_nonces": self.bad_nonces,
        }
