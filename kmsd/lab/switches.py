"""Everything about the lab that a test or an operator can switch while it runs.

The defaults are an STI-PA and STI-CA that follow the RFCs to the letter and are hostile
within them; each fault breaks one thing. Values travel as JSON through POST /lab/switches.
"""

import random
from typing import Any, Literal

import msgspec

Fault = Literal[
    "",
    "unavailable",  # 503 with Retry-After
    "rate_limited",  # 429 with Retry-After
    "error",  # 500
    "missing",  # 404
    "html",  # 200 and a web page, as a captive portal has it
    "redirect",  # 302 to a place that logs who followed
    "oversized",  # a body that goes on and on
    "corrupt",  # the right reply with one bit flipped
    "slow",  # the right reply, `stall_seconds` late
    "stall",  # nothing for `stall_seconds`, then a reset
    "reset",  # the connection is reset before anything is done
    "reply_lost",  # it is done, and then the connection is reset
]

TokenFault = Literal[
    "",
    "refused",
    "soft_refused",  # HTTP 200 with a status that is not success
    "garbage",
    "signature",
    "foreign",  # signed by another STI-PA, whose chain the x5u serves
    "http_x5u",
    "no_jti",
    "reused_jti",
    "tktype",
    "tkvalue",
    "ca",
    "expired",
    "fingerprint",
]

ListFault = Literal["", "lower_sequence", "empty", "foreign", "expired", "signature", "garbage"]

CrlFault = Literal["", "foreign", "expired", "wrong_idp", "garbage"]

OrderFault = Literal[
    "",
    "rate_limited",
    "challenge_refused",
    "challenge_malformed",  # 400 to the response itself; the authorization stays pending
    "challenge_unreachable",  # the STI-CA did not get to the chain at the token's x5u
    "never_ready",
    "bad_csr",
    "never_issued",
    "invalid",
]

RenewalFault = Literal[
    "",
    "backwards",  # ends before it begins
    "empty",  # ends when it begins
    "no_window",
    "no_offset",  # times that say nothing of their zone
    "not_times",
    "no_retry_after",
]

ChainFault = Literal[
    "",
    "foreign_ca",  # an STI-CA that is not on the list of trusted STI-CAs
    "other_key",
    "wrong_spc",
    "two_spcs",
    "no_tnauthlist",
    "critical_tnauthlist",
    "expired",
    "not_yet_valid",
    "no_policy",
    "wrong_policy",
    "two_policies",
    "key_usage",
    "no_key_usage",
    "ca_true",
    "no_basic_constraints",
    "no_crldp",
    "crldp_without_issuer",
    "wrong_crldp",
    "no_ski",
    "no_aki",
    "extra_extension",
    "subject_without_spc",
    "subject_without_country",
    "short_serial",
    "leaf_last",
    "no_intermediate",
    "private_key",
    "empty",
    "garbage",
]


class Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole board. Times and delays are in seconds."""

    # Hostility: all of it within the RFCs.
    bad_nonce_share: float = 0.15
    """Share of good nonces answered with badNonce (RFC 8555 section 6.5)."""
    delay_seconds: float = 0.3
    """Validation and issuance take a random time up to this."""
    noise: bool = True
    """JSON members in random order, and some nobody knows."""
    retry_after: int = 1
    retry_after_form: Literal["seconds", "date"] = "seconds"
    """Both are Retry-After by RFC 9110 section 10.2.3."""

    # Dialect of the STI-CA (RFC first, then what is found in the field).
    encoding: Literal["base64url", "base64", "either"] = "base64url"
    challenge_field: Literal["tkauth", "atc", "either"] = "tkauth"
    fingerprint: Literal["jwk-thumbprint", "spki", "either"] = "jwk-thumbprint"
    fingerprint_case: Literal["upper", "lower", "either"] = "upper"
    empty_payload: Literal["standard", "protected_only"] = "standard"
    eab: Literal["optional", "required"] = "optional"
    terms: bool = False
    """newAccount without termsOfServiceAgreed is refused."""
    order_x5u: bool = False
    """Valid orders carry x5u, a public URL of the chain (RFC 9448 section 7)."""
    x5u_header: bool = False
    """The same URL as X-Shaken-Certificate-Location of the download."""
    challenge_token: bool = True
    """Challenges carry the `token` that some STI-CAs leave out."""
    unique_subject: bool = True
    """A CSR with a subject that was certified before is refused."""
    ari: bool = False
    """Offer renewalInfo (RFC 9773)."""
    ari_now: bool = False
    """Its window is over: renew at once."""
    ari_retry_after: int = 21600
    certificate_seconds: int = 90 * 86400
    chain_media_type: str = "application/pem-certificate-chain"

    # Dialect of the STI-PA.
    pa_authorization: Literal["raw", "bearer", "basic"] = "raw"
    pa_body: Literal["atc", "bare", "either"] = "atc"
    pa_list_needs_login: bool = True
    token_seconds: int = 3600
    session_seconds: int = 3600
    list_seconds: int = 86400
    crl_seconds: int = 86400
    crl_der: bool = False

    # Faults: of the replies of a role, and of what it says.
    pa: Fault = ""
    ca: Fault = ""
    cr: Fault = ""
    fault_path: str = ""
    """The three above only hit paths that contain this."""
    fault_times: int = 0
    """They hit that often and then no more; 0: always."""
    stall_seconds: float = 30.0
    oversized_bytes: int = 32 * 1024 * 1024
    token: TokenFault = ""
    ca_list: ListFault = ""
    crl: CrlFault = ""
    order: OrderFault = ""
    renewal: RenewalFault = ""
    chain: ChainFault = ""


CALM: dict[str, Any] = {"bad_nonce_share": 0.0, "delay_seconds": 0.0, "noise": False}


class Board:
    """The switches as they are now. Set from any thread, read from the lab's own."""

    def __init__(self, initial: Switches) -> None:
        self.now = initial
        self._initial = initial
        self._hits = 0

    def set(self, changes: dict[str, Any]) -> Switches:
        """Switches named in `changes` get new values, all or none. Raises ValueError."""
        self.now = msgspec.convert(msgspec.structs.asdict(self.now) | changes, Switches)
        self._hits = 0
        return self.now

    def reset(self) -> Switches:
        """As at the start."""
        self.now, self._hits = self._initial, 0
        return self.now

    def fault(self, role: str, path: str) -> Fault:
        """What this request of `role` (pa, ca, cr) meets; counts it against fault_times."""
        switches = self.now
        fault: Fault = {"pa": switches.pa, "ca": switches.ca, "cr": switches.cr}.get(role, "")
        if not fault or switches.fault_path not in path:
            return ""
        if switches.fault_times and self._hits >= switches.fault_times:
            return ""
        self._hits += 1
        return fault


class Dice:
    """Randomness of the hostility; the same seed throws the same. Never for secrets."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  throws dice, makes no secrets

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def seconds(self, most: float) -> float:
        return self._random.uniform(0.0, most)

    def stir(self, value: Any) -> Any:
        """JSON with every object's members shuffled and one more that nobody knows."""
        match value:
            case dict():
                members = [(name, self.stir(member)) for name, member in value.items()]
                members.append((f"x{self._random.randrange(16**6):06x}", "not for you"))
                self._random.shuffle(members)
                return dict(members)
            case list():
                return [self.stir(member) for member in value]
            case _:
                return value
