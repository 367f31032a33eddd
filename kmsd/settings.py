"""The shape of kmsd.toml: every setting, its type, its default and its unit.

Types only: `config` reads the file, resolves paths and secrets. Unknown keys are refused.
Secrets appear here as paths to files, or as `credential:NAME` for a systemd credential
(systemd.exec(5), LoadCredential=), never as values.
"""

from enum import StrEnum
from typing import Any

import msgspec

from kmsd.errors import Misconfigured


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table in kmsd.toml."""


class Encoding(StrEnum):
    """How a TNAuthList's DER becomes text (RFC 9448 section 3 against field practice)."""

    BASE64URL = "base64url"
    BASE64 = "base64"


class ChallengeField(StrEnum):
    """Member of the challenge response that carries the SPC token (RFC 9448 section 4)."""

    TKAUTH = "tkauth"
    ATC = "atc"


class FingerprintKind(StrEnum):
    """What the `fingerprint` of an SPC token is computed over (RFC 9448 section 5.4)."""

    JWK_THUMBPRINT = "jwk-thumbprint"
    SPKI = "spki"


class LetterCase(StrEnum):
    UPPER = "upper"
    LOWER = "lower"


class EmptyPayload(StrEnum):
    """Signing input of a POST-as-GET (RFC 8555 section 6.3): with or without the last dot."""

    STANDARD = "standard"
    PROTECTED_ONLY = "protected_only"


class CsrCrldp(StrEnum):
    """CRL distribution point asked for in the CSR."""

    NONE = "none"
    URI = "uri"
    URI_AND_ISSUER = "uri+issuer"


class X5uSource(StrEnum):
    """Who hosts the chain: our STI-CR, or the STI-CA (order.x5u, RFC 9448 section 7)."""

    OWN = "own"
    ISSUER = "issuer"


class PollTarget(StrEnum):
    AUTHORIZATION = "authorization"
    ORDER = "order"


class SubjectRule(StrEnum):
    """Subject of the CSR: C, O and a unique CN `SHAKEN <SPC> <suffix>`, or nothing."""

    TEMPLATE = "template"
    EMPTY = "empty"


class IssuerRules(Settings, frozen=True):
    """How one STI-CA departs from the RFCs (PROTOCOL section 8). The defaults are the RFCs'."""

    tnauthlist_encoding: Encoding = Encoding.BASE64URL
    challenge_field: ChallengeField = ChallengeField.TKAUTH
    fingerprint_kind: FingerprintKind = FingerprintKind.JWK_THUMBPRINT
    fingerprint_case: LetterCase = LetterCase.UPPER
    empty_payload_signing: EmptyPayload = EmptyPayload.STANDARD
    jwk_kid: str = ""
    """Value of a `kid` member in the newAccount JWK; empty: none."""
    csr_subject: SubjectRule = SubjectRule.TEMPLATE
    csr_crldp: CsrCrldp = CsrCrldp.NONE
    x5u_source: X5uSource = X5uSource.OWN
    poll_target: PollTarget = PollTarget.AUTHORIZATION
    chain_media_types: tuple[str, ...] = ("application/pem-certificate-chain",)
    validity_days: int = 0
    """Lifetime asked for with notBefore/notAfter in newOrder; 0: leave it to the STI-CA."""


PRESETS: dict[str, IssuerRules] = {
    "rfc": IssuerRules(),
    "peeringhub": IssuerRules(
        tnauthlist_encoding=Encoding.BASE64,
        challenge_field=ChallengeField.ATC,
        fingerprint_kind=FingerprintKind.SPKI,
        empty_payload_signing=EmptyPayload.PROTECTED_ONLY,
        jwk_kid="kmsd",
        poll_target=PollTarget.ORDER,
        chain_media_types=(
            "application/pem-certificate-chain",
            "application/pem",
            "pem-certificate-chain",
        ),
    ),
    "martini": IssuerRules(
        tnauthlist_encoding=Encoding.BASE64,
        challenge_field=ChallengeField.ATC,
        fingerprint_kind=FingerprintKind.SPKI,
        jwk_kid="kmsd",
        csr_subject=SubjectRule.EMPTY,
        csr_crldp=CsrCrldp.URI_AND_ISSUER,
        x5u_source=X5uSource.ISSUER,
        poll_target=PollTarget.ORDER,
    ),
    "acme2certifier": IssuerRules(
        tnauthlist_encoding=Encoding.BASE64, challenge_field=ChallengeField.ATC
    ),
}


class Issuer(Settings, kw_only=True, frozen=True):
    """One STI-CA reached by ACME."""

    directory: str
    """https URL of the ACME directory (RFC 8555 section 7.1.1)."""
    preset: str = "rfc"
    rules: dict[str, Any] = {}
    """Single settings that differ from the preset, by the names of IssuerRules."""
    contact: tuple[str, ...] = ()
    terms_of_service_agreed: bool = False
    eab_key_id: str = ""
    eab_mac_key: str = ""
    """Where the external account binding MAC key is (base64url in a file): path or credential."""
    tls_ca: str = ""
    """PEM file that the HTTPS certificate must chain to; empty: the system's trust store."""
    timeout: float = 20.0
    """Seconds for one HTTP request."""
    poll_limit: float = 180.0
    """Seconds to wait for an order or authorization to become final."""

    def resolved(self) -> IssuerRules:
        """The preset with this issuer's own settings on top. Raises Misconfigured."""
        base = PRESETS.get(self.preset)
        if base is None:
            known = ", ".join(sorted(PRESETS))
            raise Misconfigured(
                "PRESET_UNKNOWN", f"There is no preset {self.preset!r}; there are: {known}."
            )
        try:
            return msgspec.convert(msgspec.structs.asdict(base) | self.rules, IssuerRules)
        except msgspec.ValidationError as error:
            raise Misconfigured("RULES_INVALID", f"rules: {error}") from error


class PaAuthorization(StrEnum):
    """How a request to the STI-PA proves who asks."""

    RAW = "raw"
    BEARER = "bearer"
    BASIC = "basic"


class PaBody(StrEnum):
    """RFC 9447 wraps the token request in `atc`, RFC 9448's example does not."""

    ATC = "atc"
    BARE = "bare"


class Authority(Settings, kw_only=True, frozen=True):
    """One STI-PA, its trust domain, and our subscriber account there."""

    url: str = ""
    """https base URL of the API; empty when tokens are only imported from a file."""
    root: str
    """PEM file: the pinned STI-PA root certificate(s)."""
    user: str = ""
    password: str = ""
    """Where the password is: path or credential."""
    authorization: PaAuthorization = PaAuthorization.RAW
    body: PaBody = PaBody.ATC
    login_path: str = "/api/v1/auth/login"
    logout_path: str = "/api/v1/auth/logout"
    token_path: str = "/api/v1/account/{id}/token"  # noqa: S105  a URL path
    ca_list_path: str = "/api/v1/ca-list"
    crl_url: str = ""
    """URL of the STI-PA's CRL; empty: `{url}/download/v1/crl`."""
    tls_ca: str = ""
    timeout: float = 20.0
    token_file: str = ""
    """Take SPC tokens from `<token_file>` ({spc}, {profile} are filled in) instead of the API."""
    min_token_seconds: int = 180
    """An SPC token with less life left is not used."""
    policy_oids: tuple[str, ...] = ("2.16.840.1.114569.1.1",)
    """Accepted certificate policies: an OID, or an arc above it."""
    country: str = "US"
    """The C that the subject of a certificate of this trust domain must have; empty: any."""


class Subject(Settings, frozen=True):
    """Distinguished name in the CSR; CN is always `SHAKEN <SPC> <suffix>` (ATIS-1000080)."""

    country: str = "US"
    organization: str = ""
    state: str = ""
    locality: str = ""


class Policy(Settings, frozen=True):
    """When a profile's credential is renewed, and how long what it leaves behind is kept."""

    renew_at: float = 0.66
    """Fraction of the lifetime after which a new credential is enrolled."""
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
    """Names of STI-CAs, the preferred one first."""
    account_id: str = ""
    """Our account at the STI-PA for this SPC; empty: the SPC itself."""
    subject: Subject = Subject()
    policy: Policy = Policy()


class Hsm(Settings, frozen=True):
    """The PKCS#11 module and token."""

    module: str = "/usr/lib/softhsm/libsofthsm2.so"
    token: str = "kmsd"  # noqa: S105  a token label
    pin: str = "credential:hsm-pin"
    """Where the user PIN is: path of a file, or credential:NAME."""
    threads: int = 1
    """HSM sessions of one signer that sign at the same time."""
    template: dict[str, bool | int | str] = {}
    """Attributes added to or replacing the default private key template, by CKA_ name."""
    environment: dict[str, str] = {}
    """Variables the module wants (SOFTHSM2_CONF, ...), set before it is loaded."""


class Store(Settings, frozen=True):
    url: str = ""
    """SQLAlchemy URL; empty: SQLite in the state folder."""


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


class Keeper(Settings, frozen=True):
    listen: str = "unix:/run/kmsd/keeper.sock"
    socket_mode: str = "0660"
    tick_seconds: float = 30.0
    """How often the rotation plan is made when nothing else wakes the keeper."""


class Repository(Settings, kw_only=True, frozen=True):
    url: str = ""
    """Where chains are put: a directory as file:///..., or object storage (s3://, gs://, az://)."""
    options: dict[str, str] = {}
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


class Client(Settings, frozen=True):
    """How kmsctl reaches the signers."""

    targets: tuple[str, ...] = ()
    tls: Tls | None = None


class Configuration(Settings, kw_only=True, frozen=True):
    """kmsd.toml as a whole. Relative paths are relative to the file."""

    state: str = "/var/lib/kmsd"
    """Folder of the keeper: store, artefacts, trust material."""
    run: str = "/run/kmsd"
    """Folder of sockets and of the signers' acknowledgements."""
    keyring: str = ""
    """Folder the keeper writes and the signers read; empty: `<state>/keyring`."""
    hsm: Hsm = Hsm()
    store: Store = Store()
    repository: Repository
    keeper: Keeper = Keeper()
    signer: Signer = Signer()
    client: Client = Client()
    authorities: dict[str, Authority]
    issuers: dict[str, Issuer]
    profiles: dict[str, Profile]
    callers: tuple[Caller, ...] = ()
