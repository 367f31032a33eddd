"""What a failed issuance says about the next attempt: whose doing it was, and what helps.

Pure, and only a reading of errors: which STI-CA is asked next, and when, is decided elsewhere
by looking at the class. Errors are told apart by what they carry (type, peer, reason, metadata),
never by their sentences. Error types: RFC 8555 section 6.7, RFC 9773 section 7.4; RFC 9447 and
RFC 9448 add none, so a refused SPC token shows by where it was refused: at the challenge.
"""

from enum import StrEnum

from kmsd.errors import KmsdError, Misconfigured, PeerRefused, Unavailable


class FailureClass(StrEnum):
    """Whose doing it is, in the order of who can help."""

    REFUSED = "refused"
    """The STI-CA says no and will again, or is not set up here: a person must look at it.
    Another STI-CA may issue."""
    RATE_LIMITED = "rate_limited"
    """The STI-CA wants to be asked later: not before the error's retry_after (0: it says nothing).
    Another may issue now."""
    UNREACHABLE = "unreachable"
    """The STI-CA gives no answer, or none of an ACME server: it may be back soon."""
    STALE = "stale"
    """What was begun there is gone (account, order): begin anew, at the same STI-CA."""
    BAD_CHAIN = "bad_chain"
    """The STI-CA issued, and nobody should sign with it. Another order may cost another fee."""
    PROOF_REFUSED = "proof_refused"
    """The STI-CA does not take the SPC token: a fresh token for a new order, then a person."""
    AUTHORITY_REFUSED = "authority_refused"
    """The STI-PA says no, or says what must not be believed. No STI-CA can do without it."""
    AUTHORITY_RATE_LIMITED = "authority_rate_limited"
    """The STI-PA wants to be asked later."""
    AUTHORITY_UNREACHABLE = "authority_unreachable"
    """The STI-PA gives no answer, or there is no SPC token yet in the file for it."""
    OURS = "ours"
    """None of theirs: this host's configuration, HSM, repository or store."""


def failure_class(error: KmsdError) -> FailureClass:
    """The class of what was raised between wanting a credential and having its chain accepted."""
    match error:
        case PeerRefused(peer="sti-ca"):
            return _refused_by_issuer(error)
        case PeerRefused(peer="sti-pa"):
            invalid = error.reason == "STI_PA_ANSWER_INVALID"
            return FailureClass.AUTHORITY_UNREACHABLE if invalid else FailureClass.AUTHORITY_REFUSED
        case Unavailable() if error.reason == "STI_PA_RATE_LIMITED":
            return FailureClass.AUTHORITY_RATE_LIMITED
        case Unavailable() if error.reason.startswith(("STI_PA_", "SPC_TOKEN_")):
            return FailureClass.AUTHORITY_UNREACHABLE
        case Unavailable() if error.reason.startswith("ACME_"):
            return _BY_REASON.get(error.reason, FailureClass.UNREACHABLE)
        case Misconfigured() if "issuer" in error.metadata:
            return FailureClass.REFUSED
        case _:
            return _BY_REASON.get(error.reason, FailureClass.OURS)


_BY_REASON = {
    "ACME_RATE_LIMITED": FailureClass.RATE_LIMITED,
    # The STI-CA's own trouble: with itself, or on its way to what it must look at (an x5u).
    "ACME_SERVER_INTERNAL": FailureClass.UNREACHABLE,
    "ACME_CONNECTION": FailureClass.UNREACHABLE,
    "ACME_DNS": FailureClass.UNREACHABLE,
    "ACME_TLS": FailureClass.UNREACHABLE,
    # Not the answers of an ACME server: a captive portal, a maintenance page, a proxy.
    "ACME_ANSWER_MALFORMED": FailureClass.UNREACHABLE,
    "ACME_REDIRECT": FailureClass.UNREACHABLE,
    "ACME_RENEWAL_WINDOW_INVALID": FailureClass.UNREACHABLE,
    "ACME_ACCOUNT_DOES_NOT_EXIST": FailureClass.STALE,
    "ACME_ALREADY_REPLACED": FailureClass.STALE,
    "ACME_BAD_NONCE": FailureClass.STALE,
    "ACME_NOT_FOUND": FailureClass.STALE,
    "ACME_ORDER_NOT_FINALIZED": FailureClass.STALE,
    "ACME_ORDER_NOT_READY": FailureClass.STALE,
    "CHAIN_NOT_ACCEPTED": FailureClass.BAD_CHAIN,
    "VERIFICATION_FAILED": FailureClass.BAD_CHAIN,  # of the canary
    "ISSUER_UNKNOWN": FailureClass.REFUSED,
}
"""Reasons that mean the same wherever they are met."""

_ABOUT_THE_PROOF = frozenset(
    {
        "",  # the challenge failed, and the STI-CA left no word why
        "ACME_COMPOUND",
        "ACME_INCORRECT_RESPONSE",
        "ACME_MALFORMED",
        "ACME_REFUSED",
        "ACME_REJECTED_IDENTIFIER",
        "ACME_UNAUTHORIZED",
    }
)
"""Refusals that are about the SPC token when they are met at the challenge."""


def _refused_by_issuer(error: PeerRefused) -> FailureClass:
    resource = error.metadata.get("resource", "")
    # A dead order says what it died of; every other refusal is its own cause.
    cause = error.metadata.get("cause", error.reason)
    if resource == "challenge" and cause in _ABOUT_THE_PROOF:
        return FailureClass.PROOF_REFUSED
    if resource == "certificate" and cause == "ACME_ANSWER_MALFORMED":
        return FailureClass.BAD_CHAIN
    if not cause:  # expired, or withdrawn: orders do, while nobody looks
        return FailureClass.STALE
    return _BY_REASON.get(cause, FailureClass.REFUSED)
