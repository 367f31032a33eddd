"""The shape of kmsd.toml: every setting, its type, its default and its unit.

Types only: `config` reads the file, resolves paths and secrets. Unknown keys are refused.
Secrets appear here as paths to files, or as `credential:NAME` for a systemd credential
(systemd.exec(5), LoadCredential=), never as values.
"""

from collections.abc import Iterable

import msgspec

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
    "staged",
    "with_staging",
]

STAGING = "/staging"
"""What the name of an STI-CA ends with where its staging service is meant; no name in kmsd.toml
has a slash."""


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


def staged(configuration: Configuration, issuers: Iterable[str]) -> tuple[str, ...]:
    """The staging services of those of these STI-CAs that have one, by their names."""
    known = configuration.issuers
    return tuple(f"{each}{STAGING}" for each in issuers if known[each].staging_directory)


def with_staging(configuration: Configuration) -> Configuration:
    """With each staging service as an STI-CA of its own: it has its own account and keys."""
    issuers = dict(configuration.issuers)
    for name, issuer in configuration.issuers.items():
        if issuer.staging_directory:
            issuers[f"{name}{STAGING}"] = msgspec.structs.replace(
                issuer, directory=issuer.staging_directory
            )
    return msgspec.structs.replace(configuration, issuers=issuers)
