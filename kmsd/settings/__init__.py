"""The shape of kmsd.toml: every setting, its type, its default and its unit.

Types only: `config` reads the file, resolves paths and secrets. Unknown keys are refused.
Secrets appear here as paths to files, or as `credential:NAME` for a systemd credential
(systemd.exec(5), LoadCredential=), never as values.
"""

from kmsd.settings.host import Client, Hsm, Keeper, Repository, Signer, Store, Tls
from kmsd.settings.identities import Caller, Policy, Profile, Subject
from kmsd.settings.peers import Authority, Issuer, PaAuthorization, PaBody
from kmsd.settings.rules import (
    PRESETS,
    ChallengeField,
    CsrCrldp,
    EmptyPayload,
    Encoding,
    FingerprintKind,
    IssuerRules,
    LetterCase,
    PollTarget,
    SubjectRule,
    X5uSource,
)
from kmsd.settings.table import Settings

__all__ = [
    "PRESETS",
    "Authority",
    "Caller",
    "ChallengeField",
    "Client",
    "Configuration",
    "CsrCrldp",
    "EmptyPayload",
    "Encoding",
    "FingerprintKind",
    "Hsm",
    "Issuer",
    "IssuerRules",
    "Keeper",
    "LetterCase",
    "PaAuthorization",
    "PaBody",
    "Policy",
    "PollTarget",
    "Profile",
    "Repository",
    "Settings",
    "Signer",
    "Store",
    "Subject",
    "SubjectRule",
    "Tls",
    "X5uSource",
]


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
