"""[issuers.*] and [authorities.*]: the STI-CAs and STI-PAs, and how they are spoken to."""

from enum import StrEnum
from typing import Any

import msgspec

from kmsd.errors import Misconfigured
from kmsd.settings.rules import PRESETS, IssuerRules
from kmsd.settings.table import Settings


class Issuer(Settings, kw_only=True, frozen=True):
    """One STI-CA reached by ACME."""

    directory: str
    """https URL of the ACME directory (RFC 8555 section 7.1.1)."""
    preset: str = "rfc"
    rules: dict[str, Any] = msgspec.field(default_factory=dict)
    """Single settings that differ from the preset, by the names of IssuerRules."""
    contact: tuple[str, ...] = ()
    terms_of_service_agreed: bool = False
    eab_key_id: str = ""
    eab_mac_key: str = ""
    """Where the external account binding MAC key is (a file of base64): path or credential."""
    tls_ca: str = ""
    """PEM file that the HTTPS certificate must chain to; empty: the system's trust store."""
    timeout: float = 20.0
    """Seconds for one HTTP request."""
    poll_limit: float = 180.0
    """Seconds to wait for an order or authorization to become final."""
    staging_directory: str = ""
    """https URL of the directory of its staging service, for rehearsals; empty: there is none."""
    staging_root: str = ""
    """PEM file: what its staging certificates lead to, trusted for rehearsals alone. Empty: to a
    root in the STI-PA's list."""

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

    url: str
    """https base URL of the API. The list of STI-CAs, the CRL and the signers' certificates come
    from there also when SPC tokens come from a file; HTTPS_PROXY is heeded."""
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
