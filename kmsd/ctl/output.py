"""The documents that `kmsctl --output json` prints: types, and the JSON Schema made from them.

One document on standard output for each command; those that are followed (`enroll`, `rotate`,
`rollback`) print one `progress` document a line, as the steps happen, and `revoke` does so before
its own. Every document begins with `schema`, the version of this contract, and `kind`. Within one
version fields are only added, never renamed or removed. Times are RFC 3339 in UTC; what is not
known or does not apply is null or "".
Not here: how these are filled (`answers`) and how they look as tables (`tables`).
"""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec

Version = Literal["kmsctl/1"]
VERSION: Version = "kmsctl/1"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what documents consist of."""


class RevocationReason(StrEnum):
    """CRLReason by its name in RFC 5280 section 5.3.1; those a provider may give."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"


REVOCATION_CODES: dict[RevocationReason, int] = {
    RevocationReason.UNSPECIFIED: 0,
    RevocationReason.KEY_COMPROMISE: 1,
    RevocationReason.AFFILIATION_CHANGED: 3,
    RevocationReason.SUPERSEDED: 4,
    RevocationReason.CESSATION_OF_OPERATION: 5,
}


class Trouble(Part, frozen=True, kw_only=True):
    """Why the last attempt failed. problem: the peer's own words. artefact: the keeper's file
    of what was issued but not accepted. retry_at: null when not tried again."""

    reason: str
    message: str
    next_step: str
    problem: str
    artefact: str
    retry_at: datetime | None


class Revocation(Part, frozen=True, kw_only=True):
    """When the STI-CA took the revocation (condemned: when it was asked for, which waits for
    another credential), and the RFC 5280 name of the reason."""

    at: datetime
    reason: str


class Birth(Part, frozen=True, kw_only=True):
    """What was read back from the HSM when the key was made. public_key: DER
    SubjectPublicKeyInfo, base64. public_key_sha256: of that DER, hex."""

    label: str
    made_at: datetime | None
    public_key: bytes
    public_key_sha256: str
    attributes: dict[str, bool]
    module: str
    token: str
    serial: str


class Certificate(Part, frozen=True, kw_only=True):
    """One certificate of a chain, leaf first. spki_sha256: of the DER
    SubjectPublicKeyInfo, hex, which for the leaf must be the birth record's."""

    subject: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    spki_sha256: str


class Credential(Part, frozen=True, kw_only=True):
    """Key, certificate chain and x5u of one profile (kmsapi.v1.Credential)."""

    id: str
    profile: str
    spc: str
    state: str
    key_id: str
    created_at: datetime | None
    issuer: str
    serial: str
    not_before: datetime | None
    not_after: datetime | None
    x5u: str
    spki_sha256: str
    epoch: int | None
    destroy_at: datetime | None
    trouble: Trouble | None
    revocation: Revocation | None
    condemned: Revocation | None
    rehearsal: bool


class Profile(Part, frozen=True, kw_only=True):
    """One service provider identity, what it signs with, and what happens next."""

    name: str
    spc: str
    authority: str
    issuers: tuple[str, ...]
    active: Credential | None
    coming: Credential | None
    next_step: str
    next_step_at: datetime | None
    waits_for: str


class Hsm(Part, frozen=True, kw_only=True):
    """The PKCS#11 token as the keeper sees it."""

    usable: bool
    token: str
    serial: str
    module: str
    keys: int
    foreign_objects: int
    trouble: str


class Signer(Part, frozen=True, kw_only=True):
    """One signer process; epoch is the keyring version it signs under."""

    index: int
    alive: bool
    pid: int
    epoch: int
    acknowledged_at: datetime | None
    profiles: int


class TrustMaterial(Part, frozen=True, kw_only=True):
    """Trusted STI-CA list and CRL of one STI-PA, as last accepted."""

    authority: str
    sequence: int
    roots: int
    list_fetched_at: datetime | None
    list_expires_at: datetime | None
    crl_number: str
    crl_fetched_at: datetime | None
    crl_next_update: datetime | None
    trouble: str


class Alarm(Part, frozen=True, kw_only=True):
    """What a person must know; next_step is empty when kmsd deals with it alone."""

    reason: str
    message: str
    next_step: str
    subject: str
    since: datetime | None


class Condition(StrEnum):
    """The whole key room in one word, and the exit code of `status`: 0, 3 or 4."""

    OK = "ok"
    DEGRADED = "degraded"
    NEEDS_PERSON = "needs_person"


class Document(Part, frozen=True, kw_only=True):
    """Base of what is printed; each has `kind` right after `schema`."""

    schema: Version = VERSION


class StatusDocument(Document, frozen=True, kw_only=True):
    kind: Literal["status"] = "status"
    condition: Condition
    keeper: str
    standing_by: str = ""
    version: str
    now: datetime
    started_at: datetime | None
    epoch: int
    hsm: Hsm
    signers: tuple[Signer, ...]
    trust: tuple[TrustMaterial, ...]
    profiles: tuple[Profile, ...]
    alarms: tuple[Alarm, ...]


class ProfilesDocument(Document, frozen=True, kw_only=True):
    kind: Literal["profiles"] = "profiles"
    profiles: tuple[Profile, ...]


class CredentialsDocument(Document, frozen=True, kw_only=True):
    kind: Literal["credentials"] = "credentials"
    credentials: tuple[Credential, ...]


class CredentialDocument(Document, frozen=True, kw_only=True):
    """One credential. chain_pem, certificates and birth are there for `credential` only."""

    kind: Literal["credential"] = "credential"
    credential: Credential
    chain_pem: str = ""
    certificates: tuple[Certificate, ...] = ()
    birth: Birth | None = None


class ProgressDocument(Document, frozen=True, kw_only=True):
    """One step of an enrollment. reason: why it failed, or why the step is tried again."""

    kind: Literal["progress"] = "progress"
    at: datetime
    message: str
    reason: str
    done: bool
    credential: Credential


class Explanation(Part, frozen=True, kw_only=True):
    """One credential's situation. credential: "" when the profile has none, state is then "none".
    who: kmsd, operator, hsm, sti-pa, sti-ca, sti-cr, signers or nobody. command: what to type."""

    credential: str
    state: str
    why: str
    needs: str
    who: str
    command: str
    since: datetime | None
    next_at: datetime | None


class ExplanationDocument(Document, frozen=True, kw_only=True):
    """Of a credential, or of those of a profile that count."""

    kind: Literal["explanation"] = "explanation"
    profile: str
    explanations: tuple[Explanation, ...]


class Planned(Part, frozen=True, kw_only=True):
    """credential: "" for one that does not exist yet. what: enroll (a person is waited for),
    renew, retire, destroy_key or expire."""

    at: datetime
    profile: str
    credential: str
    what: str
    why: str


class PlanDocument(Document, frozen=True, kw_only=True):
    """The calendar. cut: there are more entries than are given."""

    kind: Literal["plan"] = "plan"
    now: datetime
    days: int
    entries: tuple[Planned, ...]
    cut: bool


class Account(Part, frozen=True, kw_only=True):
    """An ACME account. thumbprint: of its key (RFC 7638), base64url."""

    profile: str
    issuer: str
    url: str
    key_id: str
    thumbprint: str


class AccountsDocument(Document, frozen=True, kw_only=True):
    """Accounts as they are now."""

    kind: Literal["accounts"] = "accounts"
    accounts: tuple[Account, ...]


class ForgottenDocument(Document, frozen=True, kw_only=True):
    """The trust material that was gone by, and what is now."""

    kind: Literal["forgotten"] = "forgotten"
    before: TrustMaterial
    after: TrustMaterial


class IdentityDocument(Document, frozen=True, kw_only=True):
    """identity: the value of the SIP Identity header field (RFC 8224 section 4)."""

    kind: Literal["identity"] = "identity"
    profile: str
    identity: str


class VerificationDocument(Document, frozen=True, kw_only=True):
    """Whether an Identity header value verifies.

    holds: what was established, in order. sip_code: 200, or that of RFC 8224 section 6.2.2:
    403, 436, 437 or 438. reason, message, next_step: of the step that failed, else "".
    """

    kind: Literal["verification"] = "verification"
    verified: bool
    sip_code: int
    holds: tuple[str, ...]
    reason: str = ""
    message: str = ""
    next_step: str = ""
    facts: dict[str, str] = {}


class ErrorDocument(Document, frozen=True, kw_only=True):
    """The command failed. metadata: further facts, text to text (google.rpc.ErrorInfo)."""

    kind: Literal["error"] = "error"
    reason: str
    message: str
    next_step: str
    metadata: dict[str, str]
    exit_code: int


PRINTED_BY: dict[str, type[Document] | tuple[type[Document], ...]] = {
    "status": StatusDocument,
    "profiles": ProfilesDocument,
    "credentials": CredentialsDocument,
    "credential": CredentialDocument,
    "explain": ExplanationDocument,
    "plan": PlanDocument,
    "enroll": ProgressDocument,
    "rotate": ProgressDocument,
    "rollback": ProgressDocument,
    "revoke": (ProgressDocument, CredentialDocument),
    "destroy": CredentialDocument,
    "restore": CredentialDocument,
    "account roll": AccountsDocument,
    "trust forget": ForgottenDocument,
    "sign": IdentityDocument,
    "verify": VerificationDocument,
}
"""Which document each command prints when it succeeds."""


def encoded(document: Document) -> str:
    """The document as one line of JSON, without a newline."""
    return msgspec.json.encode(document).decode()


def schema(command: str = "") -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what `command` prints; empty: of every document."""
    printed = dict.fromkeys(
        document
        for name, several in PRINTED_BY.items()
        if command in ("", name)
        for document in (several if isinstance(several, tuple) else (several,))
    )
    references, definitions = msgspec.json.schema_components(
        [*printed, ErrorDocument], ref_template="#/$defs/{name}"
    )
    for definition in definitions.values():
        if "properties" in definition:  # what has a default is printed all the same
            definition["required"] = list(definition["properties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"kmsctl {command} --output json".replace("  ", " "),
        "anyOf": list(references),
        "$defs": definitions,
    }
