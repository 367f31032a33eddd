"""From what a STI-CA answered when it did not do what was asked, to our errors.

Pure decisions on status code, headers and body; nothing is sent from here.
RFC 8555 section 6.7 (error types), RFC 7807 (problem documents). The server's document goes
along word for word; what is put into a sentence of ours is shortened and freed of control
characters, for it ends on terminals.
"""

from collections.abc import Mapping

import msgspec

from kmsd.acme.messages import Problem, verbatim, without_tokens
from kmsd.errors import PeerRefused, Unavailable
from kmsd.retryafter import retry_after

PEER = "sti-ca"
URN = "urn:ietf:params:acme:error:"

_KNOWN: Mapping[str, tuple[str, str]] = {
    "accountDoesNotExist": (
        "ACME_ACCOUNT_DOES_NOT_EXIST",
        "The STI-CA forgot the account, or the directory is another one than it was made at: "
        "make the account anew.",
    ),
    "alreadyReplaced": ("ACME_ALREADY_REPLACED", "Order without naming the old certificate."),
    "alreadyRevoked": ("ACME_ALREADY_REVOKED", ""),
    "badCSR": ("ACME_BAD_CSR", "Check csr_subject and csr_crldp of this issuer's rules."),
    "badNonce": ("ACME_BAD_NONCE", ""),
    "badPublicKey": ("ACME_BAD_PUBLIC_KEY", "Make another account key."),
    "badRevocationReason": ("ACME_BAD_REVOCATION_REASON", "Revoke with another reason code."),
    "badSignatureAlgorithm": ("ACME_BAD_SIGNATURE_ALGORITHM", ""),
    "caa": ("ACME_CAA", ""),
    "compound": ("ACME_COMPOUND", "The subproblems in the STI-CA's document say what to do."),
    "connection": ("ACME_CONNECTION", "The STI-CA could not reach what it must: ask it."),
    "dns": ("ACME_DNS", ""),
    "externalAccountRequired": (
        "ACME_EXTERNAL_ACCOUNT_REQUIRED",
        "Ask the STI-CA for a key id and a MAC key; set eab_key_id and eab_mac_key.",
    ),
    "incorrectResponse": ("ACME_INCORRECT_RESPONSE", ""),
    "invalidContact": ("ACME_INVALID_CONTACT", "Correct `contact` of this issuer."),
    "malformed": ("ACME_MALFORMED", "Compare this issuer's preset and rules with its manual."),
    "orderNotReady": ("ACME_ORDER_NOT_READY", "Authorize the order first."),
    "rateLimited": ("ACME_RATE_LIMITED", ""),
    "rejectedIdentifier": (
        "ACME_REJECTED_IDENTIFIER",
        "Check that the STI-CA serves this SPC, and tnauthlist_encoding of its rules.",
    ),
    "serverInternal": ("ACME_SERVER_INTERNAL", ""),
    "tls": ("ACME_TLS", ""),
    "unauthorized": (
        "ACME_UNAUTHORIZED",
        "Check the SPC token (fingerprint_kind, challenge_field) and the account.",
    ),
    "unsupportedContact": ("ACME_UNSUPPORTED_CONTACT", "Correct `contact` of this issuer."),
    "unsupportedIdentifier": (
        "ACME_UNSUPPORTED_IDENTIFIER",
        "This server issues no TNAuthList certificates: is `directory` right?",
    ),
    "userActionRequired": ("ACME_USER_ACTION_REQUIRED", "Do what the STI-CA asks for, then retry."),
}
"""ACME error type to our reason and next step. Others become ACME_REFUSED."""
_FOR_RESOURCE: Mapping[tuple[str, str], str] = {
    ("revokeCert", "ACME_NOT_FOUND"): "Ask the STI-CA that issued the certificate.",
    ("revokeCert", "ACME_UNAUTHORIZED"): "Revoke with the account that ordered the certificate, "
    "or with the certificate's own key.",
    ("keyChange", "ACME_UNAUTHORIZED"): "Check the account: its key may be another one by now.",
    ("renewalInfo", "ACME_NOT_FOUND"): "The credential is renewed as if nothing was suggested.",
}
"""Next steps that are others for this resource."""
_VAGUE = frozenset({"ACME_REFUSED", "ACME_MALFORMED", "ACME_SERVER_INTERNAL"})
"""Reasons that say less than HTTP 404 does: there is no error type for what is gone."""


def refusal(
    issuer: str, resource: str, status: int, headers: Mapping[str, str], body: bytes, now: float
) -> PeerRefused | Unavailable:
    """The error for an answer with a status of 300 or more.

    issuer: its name in the configuration. resource: the RFC's word for what was asked (newOrder).
    headers: with lower-case names. now: seconds since the epoch, for a Retry-After date.
    """
    problem = problem_in(body)
    wait = retry_after(headers, now) or 0.0
    facts = {"issuer": issuer, "resource": resource, "status": str(status)}
    if 300 <= status < 400:
        return PeerRefused(
            "ACME_REDIRECT",
            f"STI-CA {issuer} answers {resource} with a redirect to "
            f"{printable(headers.get('location', 'nowhere'))}; redirects are not followed.",
            peer=PEER,
            problem=verbatim(body),
            next_step="Set `directory` to the address the STI-CA documents.",
            **facts,
        )
    kind = (problem.type if problem else "").removeprefix(URN)
    reason, next_step = _KNOWN.get(kind, ("ACME_REFUSED", ""))
    detail = printable((problem.detail if problem else "") or "")
    said = f": {detail.rstrip('.')}." if detail else f" (HTTP {status})."
    if kind == "rateLimited" or status == 429:
        return Unavailable(
            "ACME_RATE_LIMITED",
            f"STI-CA {issuer} limits the rate of {resource}{said}",
            retry_after=wait,
            problem=verbatim(body),
            **facts,
        )
    if status == 404 and reason in _VAGUE:
        reason, next_step = "ACME_NOT_FOUND", "It may have expired there: start anew."
    elif status >= 500 or kind == "serverInternal":
        return Unavailable(
            "ACME_SERVER_INTERNAL",
            f"STI-CA {issuer} failed to answer {resource}{said}",
            retry_after=wait,
            problem=verbatim(body),
            **facts,
        )
    elif problem is None:
        return malformed(issuer, resource, f"with HTTP {status} and no problem document", body)
    if kind == "userActionRequired" and problem and problem.instance:
        next_step = f"Visit {printable(problem.instance)}, then retry."
    next_step = _FOR_RESOURCE.get((resource, reason), next_step)
    return PeerRefused(
        reason,
        f"STI-CA {issuer} refused {resource}{said}",
        peer=PEER,
        problem=verbatim(body),
        next_step=next_step,
        **facts,
    )


def order_invalid(
    issuer: str, order_url: str, error: str, challenges: list[str], *, judged: bool
) -> PeerRefused:
    """The order is dead. error: its problem document; challenges: those of its challenges.

    judged: an authorization failed, so the SPC token is what it died of. In the metadata,
    resource is then "challenge" (else "order"), and cause our reason for the problem that
    decided it, empty when the STI-CA left none. Documents are kept word for word.
    """
    documents = challenges + ([error] if error else [])
    first = problem_in(documents[0].encode()) if documents else None
    kind = first.type.removeprefix(URN) if first else ""
    detail = printable((first.detail if first else "") or kind)
    cause, next_step = _KNOWN.get(kind, ("", "Ask the STI-CA why: it left no reason."))
    if "fingerprint" in "".join(documents).lower():
        next_step = (
            "Compare fingerprint_kind and fingerprint_case in the issuer's rules, or its preset, "
            "with what this STI-CA expects (RFC 9448 section 5.4)."
        )
    return PeerRefused(
        "ACME_ORDER_INVALID",
        f"STI-CA {issuer} gave up the order" + (f": {detail.rstrip('.')}." if detail else "."),
        peer=PEER,
        problem="\n".join(documents),
        next_step=next_step or "A new order is needed.",
        issuer=issuer,
        resource="challenge" if judged else "order",
        order=order_url,
        error=printable(kind),
        cause=cause or ("ACME_REFUSED" if documents else ""),
    )


def malformed(issuer: str, resource: str, what: str, body: bytes = b"") -> PeerRefused:
    """The answer makes no sense; `what` ends the sentence 'STI-CA x answered newOrder ...'."""
    return PeerRefused(
        "ACME_ANSWER_MALFORMED",
        f"STI-CA {issuer} answered {resource} {what}.",
        peer=PEER,
        problem=verbatim(body),
        next_step="Check that `directory` is an ACME server's and no proxy answers in its place.",
        issuer=issuer,
        resource=resource,
    )


def problem_in(body: bytes) -> Problem | None:
    """The problem document that `body` is, whatever its media type says; or None."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return problem if problem != Problem() else None


def printable(text: str) -> str:
    """Text of a stranger, fit for one of our sentences: one line, at most 300 characters."""
    shown = without_tokens(text[:20_000])[:1000]
    line = " ".join("".join(c if c.isprintable() else " " for c in shown).split())
    return line if len(line) <= 300 else line[:299] + "…"
