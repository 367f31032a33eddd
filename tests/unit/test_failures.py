"""The class of each failure, over the tables of ACME error types, and over errors that were not
made by hand: those of the adapters are classed in tests/contract and tests/lab."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.acme import problems
from kmsd.errors import (
    Invalid,
    KmsdError,
    Misconfigured,
    PeerRefused,
    Precondition,
    Unavailable,
)
from kmsd.failures import FailureClass, failure_class
from kmsd.verification import VerificationFailed

REFUSED, STALE = FailureClass.REFUSED, FailureClass.STALE
UNREACHABLE, RATE_LIMITED = FailureClass.UNREACHABLE, FailureClass.RATE_LIMITED
PROOF_REFUSED, BAD_CHAIN = FailureClass.PROOF_REFUSED, FailureClass.BAD_CHAIN

ERROR_TYPES = {
    # RFC 8555 section 6.7: status, at newOrder, at the challenge
    "accountDoesNotExist": (400, STALE, STALE),
    "alreadyRevoked": (400, REFUSED, REFUSED),
    "badCSR": (400, REFUSED, REFUSED),
    "badNonce": (400, STALE, STALE),
    "badPublicKey": (400, REFUSED, REFUSED),
    "badRevocationReason": (400, REFUSED, REFUSED),
    "badSignatureAlgorithm": (400, REFUSED, REFUSED),
    "caa": (403, REFUSED, REFUSED),
    "compound": (400, REFUSED, PROOF_REFUSED),
    "connection": (400, UNREACHABLE, UNREACHABLE),
    "dns": (400, UNREACHABLE, UNREACHABLE),
    "externalAccountRequired": (403, REFUSED, REFUSED),
    "incorrectResponse": (403, REFUSED, PROOF_REFUSED),
    "invalidContact": (400, REFUSED, REFUSED),
    "malformed": (400, REFUSED, PROOF_REFUSED),
    "orderNotReady": (403, STALE, STALE),
    "rateLimited": (429, RATE_LIMITED, RATE_LIMITED),
    "rejectedIdentifier": (400, REFUSED, PROOF_REFUSED),
    "serverInternal": (500, UNREACHABLE, UNREACHABLE),
    "tls": (400, UNREACHABLE, UNREACHABLE),
    "unauthorized": (403, REFUSED, PROOF_REFUSED),
    "unsupportedContact": (400, REFUSED, REFUSED),
    "unsupportedIdentifier": (400, REFUSED, REFUSED),
    "userActionRequired": (403, REFUSED, REFUSED),
    # RFC 9773 section 7.4
    "alreadyReplaced": (409, STALE, STALE),
    # RFC 9115, which STI-CAs have no use for, and one that nobody has heard of
    "unknownDelegation": (403, REFUSED, PROOF_REFUSED),
    "inventedHere": (400, REFUSED, PROOF_REFUSED),
}


def document(kind: str) -> bytes:
    return json.dumps({"type": problems.URN + kind, "detail": "so it is"}).encode()


def refusal(resource: str, status: int, body: bytes = b"<html>") -> KmsdError:
    return problems.refusal("ca", resource, status, {"retry-after": "90"}, body, 0.0)


def dead(error: str = "", challenges: tuple[str, ...] = (), *, judged: bool) -> KmsdError:
    return problems.order_invalid("ca", "https://ca.example/", error, [*challenges], judged=judged)


@pytest.mark.parametrize("kind", ERROR_TYPES)
def test_each_error_type_has_its_class(kind: str) -> None:
    status, at_order, at_challenge = ERROR_TYPES[kind]
    for resource, wanted in (("newOrder", at_order), ("challenge", at_challenge)):
        assert failure_class(refusal(resource, status, document(kind))) is wanted


@pytest.mark.parametrize("kind", ERROR_TYPES)
def test_an_order_that_died_is_classed_by_what_it_died_of(kind: str) -> None:
    _, at_order, at_challenge = ERROR_TYPES[kind]
    said = document(kind).decode()
    assert failure_class(dead(said, judged=False)) is at_order
    assert failure_class(dead(said, judged=True)) is at_challenge
    both = dead(document("compound").decode(), (said,), judged=True)
    assert failure_class(both) is at_challenge, "the challenge knows better than the order"


def test_an_order_that_died_in_silence_died_of_the_token_only_if_that_was_judged() -> None:
    assert failure_class(dead(judged=True)) is PROOF_REFUSED
    assert failure_class(dead(judged=False)) is STALE
    assert failure_class(dead("no document", judged=False)) is REFUSED


@pytest.mark.parametrize(
    ("resource", "status", "wanted"),
    [
        ("newOrder", 301, UNREACHABLE),
        ("newOrder", 403, UNREACHABLE),  # a proxy's page
        ("newOrder", 429, RATE_LIMITED),
        ("newOrder", 500, UNREACHABLE),
        ("newOrder", 503, UNREACHABLE),
        ("challenge", 403, UNREACHABLE),
        ("challenge", 503, UNREACHABLE),
        ("order", 404, STALE),
        ("certificate", 403, BAD_CHAIN),
    ],
)
def test_a_page_of_html_says_as_much_as_its_status(
    resource: str, status: int, wanted: FailureClass
) -> None:
    assert failure_class(refusal(resource, status)) is wanted


def sti_ca(reason: str, **metadata: str) -> PeerRefused:
    return PeerRefused(reason, "No.", peer="sti-ca", **metadata)


def sti_pa(reason: str) -> PeerRefused:
    return PeerRefused(reason, "No.", peer="sti-pa")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (sti_ca("ACME_NO_CHALLENGE", issuer="ca"), "refused"),
        (sti_ca("ACME_ACCOUNT_UNUSABLE"), "refused"),
        (sti_ca("ACME_KEY_IN_USE"), "refused"),
        (sti_ca("ACME_RENEWAL_WINDOW_INVALID"), "unreachable"),
        (sti_ca("ACME_ANSWER_MALFORMED", resource="newNonce"), "unreachable"),
        (sti_ca("ACME_ANSWER_MALFORMED", resource="certificate"), "bad_chain"),
        (sti_ca("CHAIN_NOT_ACCEPTED", rule="key"), "bad_chain"),
        (VerificationFailed("chain", 437, "No."), "bad_chain"),
        (Unavailable("ACME_TIMEOUT", "No."), "unreachable"),
        (Unavailable("ACME_UNREACHABLE", "No."), "unreachable"),
        (Unavailable("ACME_NONCE_BUDGET", "No."), "unreachable"),
        (Unavailable("ACME_POLL_LIMIT", "No."), "unreachable"),
        (Unavailable("ACME_RATE_LIMITED", "No."), "rate_limited"),
        (Unavailable("ACME_ACCOUNT_DOES_NOT_EXIST", "It is made anew."), "stale"),
        (Precondition("ACME_ORDER_NOT_FINALIZED", "No."), "stale"),
        (Misconfigured("ACME_EAB_REQUIRED", "No.", issuer="ca"), "refused"),
        (Misconfigured("ISSUER_UNKNOWN", "No."), "refused"),
        (sti_pa("STI_PA_REFUSED"), "authority_refused"),
        (sti_pa("STI_PA_LOGIN_REFUSED"), "authority_refused"),
        (sti_pa("SPC_TOKEN_REJECTED"), "authority_refused"),
        (sti_pa("TRUST_LIST_ROLLBACK"), "authority_refused"),
        (sti_pa("STI_PA_ANSWER_INVALID"), "authority_unreachable"),
        (Unavailable("STI_PA_TIMEOUT", "No."), "authority_unreachable"),
        (Unavailable("STI_PA_RATE_LIMITED", "No."), "authority_rate_limited"),
        (Unavailable("SPC_TOKEN_FILE_MISSING", "No."), "authority_unreachable"),
        (Misconfigured("AUTHORITY_USER", "No."), "ours"),
        (PeerRefused("X5U_DIFFERENT", "No.", peer="sti-cr"), "ours"),
        (Unavailable("X5U_UNREACHABLE", "No."), "ours"),
        (Unavailable("HSM_UNAVAILABLE", "No."), "ours"),
        (Precondition("ACME_KEY_REUSED", "No."), "ours"),
        (Invalid("CSR_MALFORMED", "No."), "ours"),
    ],
    ids=lambda value: value.reason if isinstance(value, KmsdError) else value,
)
def test_what_is_no_acme_error_has_its_class_too(error: KmsdError, wanted: str) -> None:
    assert failure_class(error) == wanted


@given(
    st.sampled_from(["newOrder", "challenge", "finalize", "certificate", "renewalInfo"]),
    st.integers(300, 599),
    st.sampled_from(sorted(ERROR_TYPES)).map(document) | st.binary(max_size=50),
)
def test_an_sti_cas_answer_is_never_blamed_on_somebody_else(
    resource: str, status: int, body: bytes
) -> None:
    found = failure_class(refusal(resource, status, body))
    assert not found.startswith(("authority", "ours"))
    if found is PROOF_REFUSED:
        assert resource == "challenge"
