"""How STI-CAs depart from the RFCs (PROTOCOL section 8): single rules, and presets of them."""

from enum import StrEnum

from kmsd.settings.table import Settings


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
    """Lifetime asked for with notAfter in newOrder; 0: leave it to the STI-CA."""


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
