"""Credentials and what is known of them, as frozen values.

A credential is key + certificate chain + x5u of one profile. Its `state` is one of the
types below, each holding what is known by then; `enrollment` says how one becomes the next.
All times are integer seconds since the epoch (UTC). Values here are what the store keeps
and what travels as JSON, so a changed field is a schema change.
"""

import msgspec


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the frozen values."""


class BirthRecord(Value, frozen=True):
    """What was read back from the HSM right after a key was made; its proof of origin.

    key_id: the CKA_ID, 32 lower-case hex digits. public_key: DER SubjectPublicKeyInfo (P-256).
    attributes: CKA_ name to value as read back. module, firmware, serial: of the token.
    """

    key_id: str
    label: str
    made_at: int
    public_key: bytes
    attributes: dict[str, bool]
    module: str
    token: str
    serial: str


class New(Value, tag="new", frozen=True):
    """Nothing done yet; the key's CKA_ID is chosen and stored before the key exists."""


class Keyed(Value, tag="keyed", frozen=True):
    """The key is in the HSM and was checked."""

    birth: BirthRecord


class Ordered(Value, tag="ordered", frozen=True):
    """The STI-CA has an order (RFC 8555 section 7.4)."""

    birth: BirthRecord
    issuer: str
    order_url: str


class Authorized(Value, tag="authorized", frozen=True):
    """The SPC token was accepted: the order is ready."""

    birth: BirthRecord
    issuer: str
    order_url: str


class Finalizing(Value, tag="finalizing", frozen=True):
    """The CSR is with the STI-CA."""

    birth: BirthRecord
    issuer: str
    order_url: str


class Certificate(Value, frozen=True):
    """An accepted chain. chain: PEM, leaf first. spki_sha256, serial: lower-case hex."""

    chain: str
    issuer: str
    order_url: str
    serial: str
    spki_sha256: str
    not_before: int
    not_after: int
    issuer_x5u: str = ""


class Issued(Value, tag="issued", frozen=True):
    """The chain passed the acceptance gate."""

    birth: BirthRecord
    certificate: Certificate


class Published(Value, tag="published", frozen=True):
    """The chain is public at x5u and was fetched back byte-identical.

    recalled: it was active before, and a person wants it back.
    """

    birth: BirthRecord
    certificate: Certificate
    x5u: str
    recalled: bool = False


class Active(Value, tag="active", frozen=True):
    """What the profile signs with, in every signer, since `epoch`. recalled: as in Published."""

    birth: BirthRecord
    certificate: Certificate
    x5u: str
    since: int
    epoch: int
    recalled: bool = False


class Retired(Value, tag="retired", frozen=True):
    """No longer signs; still public; its key waits for the end of the holding time."""

    birth: BirthRecord
    certificate: Certificate
    x5u: str
    since: int
    destroy_at: int


class Rehearsed(Value, tag="rehearsed", frozen=True):
    """The end of a rehearsal: all went well up to activation. Its key is destroyed at once."""

    birth: BirthRecord
    certificate: Certificate
    x5u: str
    at: int


class Failed(Value, tag="failed", frozen=True):
    """Ended before it was active. birth is set when there is a key to destroy.

    step: the state it failed in. reason, message, next_step: as in errors.
    problem: the peer's own words. artefact: file with what was issued but not accepted.
    """

    step: str
    at: int
    reason: str
    message: str
    next_step: str = ""
    problem: str = ""
    artefact: str = ""
    birth: BirthRecord | None = None
    destroy_at: int = 0


class Doomed(Value, tag="doomed", frozen=True):
    """Destruction is scheduled; until `destroy_at` it can be restored to what it was."""

    was: Retired | Failed
    birth: BirthRecord
    since: int
    destroy_at: int


class Destroyed(Value, tag="destroyed", frozen=True):
    """The key is gone from the HSM; the record stays."""

    key_id: str
    at: int
    birth: BirthRecord | None = None
    certificate: Certificate | None = None
    x5u: str = ""


State = (
    New
    | Keyed
    | Ordered
    | Authorized
    | Finalizing
    | Issued
    | Published
    | Active
    | Retired
    | Rehearsed
    | Failed
    | Doomed
    | Destroyed
)


class Trouble(Value, frozen=True):
    """The last attempt, at `at`, did not succeed; it will be repeated at `retry_at`.

    problem: the peer's own words, where it was a peer. at: 0 where it was not written down.
    """

    reason: str
    message: str
    since: int
    attempts: int
    retry_at: int
    next_step: str = ""
    problem: str = ""
    at: int = 0


KEY_COMPROMISE = 1
"""RFC 5280 section 5.3.1: somebody else may have the key."""


class Revocation(Value, frozen=True):
    """The STI-CA took the revocation at `at`, for `reason` (RFC 5280 section 5.3.1 code)."""

    at: int
    reason: int


class Condemned(Value, frozen=True):
    """What was asked for at `at`: the certificate is revoked for `reason` (RFC 5280 section 5.3.1
    code) as soon as the profile signs with another credential, and the key destroyed right after.

    by_certificate_key: the request to the STI-CA is signed by the key itself, not by the account.
    at_once: it is revoked first, even while the profile signs with it.
    """

    at: int
    reason: int
    by_certificate_key: bool = False
    at_once: bool = False


class Credential(Value, frozen=True):
    """One credential. id: 16 lower-case hex digits; key_id: its CKA_ID, 32 hex digits.

    version grows by one with every stored change (lost updates are refused).
    rehearsal: it comes from a staging directory and never becomes active.
    abandoned: names of the STI-CAs whose orders for it were given up, the last one last.
    """

    id: str
    profile: str
    spc: str
    key_id: str
    created: int
    state: State
    version: int = 0
    trouble: Trouble | None = None
    revocation: Revocation | None = None
    rehearsal: bool = False
    abandoned: tuple[str, ...] = ()
    condemned: Condemned | None = None


class Account(Value, frozen=True):
    """An ACME account of one profile at one issuer; its key is in the HSM.

    url is empty until the STI-CA created the account. coming_key_id: CKA_ID of the key that the
    account is to have next; stored before that key is made, empty: none is. former: of a key that
    is none of an account's any more, and is still to be destroyed.
    """

    profile: str
    issuer: str
    key_id: str
    birth: BirthRecord | None = None
    url: str = ""
    coming_key_id: str = ""
    former: BirthRecord | None = None


class TrustList(Value, frozen=True):
    """The STI-PA's list of trusted STI-CAs as last accepted. roots: PEM certificates."""

    authority: str
    sequence: int
    expires: int
    fetched_at: int
    roots: tuple[str, ...]


class RevocationList(Value, frozen=True):
    """The STI-PA's CRL as last accepted. der: the CertificateList.

    number: in decimal; it may have 20 octets, more than numbers in JSON or a database.
    """

    authority: str
    number: str
    next_update: int
    fetched_at: int
    der: bytes
