"""Each way the lab's STI-PA and STI-CA can fail an issuance, and the class it is told apart by."""

import time
from pathlib import Path
from typing import Any

import pytest

from kmsd import gate, jose
from kmsd.authority import Authority
from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.failures import FailureClass, failure_class
from kmsd.lab import Lab
from kmsd.settings import Authority as AuthoritySettings
from kmsd.settings import FingerprintKind, LetterCase
from tests.lab.parties import DER, Subscriber, make_csr
from tests.lab.test_acme_client import Customer
from tests.pebble import SoftKey

FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "STI-CA: 503": ({"ca": "unavailable"}, "unreachable"),
    "STI-CA: 500": ({"ca": "error"}, "unreachable"),
    "STI-CA: web page": ({"ca": "html"}, "unreachable"),
    "STI-CA: redirect": ({"ca": "redirect"}, "unreachable"),
    "STI-CA: endless": ({"ca": "oversized"}, "unreachable"),
    "STI-CA: reset": ({"ca": "reset"}, "unreachable"),
    "STI-CA: stall": ({"ca": "stall", "stall_seconds": 1.0}, "unreachable"),
    "STI-CA: every nonce is bad": ({"bad_nonce_share": 1.0}, "unreachable"),
    "STI-CA: 429": ({"ca": "rate_limited"}, "rate_limited"),
    "STI-CA: 429 with a date": (
        {"ca": "rate_limited", "retry_after_form": "date"},
        "rate_limited",
    ),
    "STI-CA: too many orders": ({"order": "rate_limited"}, "rate_limited"),
    "STI-CA: wants a contract": ({"eab": "required"}, "refused"),
    "STI-CA: bad CSR": ({"order": "bad_csr"}, "refused"),
    "STI-CA: fails to issue": ({"order": "invalid"}, "unreachable"),
    "STI-CA: never ready": ({"order": "never_ready"}, "unreachable"),
    "STI-CA: never issues": ({"order": "never_issued"}, "unreachable"),
    "token: judged bad": ({"order": "challenge_refused"}, "proof_refused"),
    "token: refused at once": ({"order": "challenge_malformed"}, "proof_refused"),
    "token: another fingerprint": ({"fingerprint": "spki"}, "proof_refused"),
    "token: another member": ({"challenge_field": "atc"}, "proof_refused"),
    "token: its x5u is not reached": ({"order": "challenge_unreachable"}, "unreachable"),
    "chain: another key": ({"chain": "other_key"}, "bad_chain"),
    "chain: another STI-CA": ({"chain": "foreign_ca"}, "bad_chain"),
    "chain: garbage": ({"chain": "garbage"}, "bad_chain"),
    "chain: private key": ({"chain": "private_key"}, "bad_chain"),
    "chain: media type": ({"chain_media_type": "text/html"}, "bad_chain"),
    "STI-PA: 503": ({"pa": "unavailable"}, "authority_unreachable"),
    "STI-PA: reset": ({"pa": "reset"}, "authority_unreachable"),
    "STI-PA: web page": ({"pa": "html"}, "authority_unreachable"),
    "STI-PA: redirect": ({"pa": "redirect"}, "authority_unreachable"),
    "STI-PA: 429": ({"pa": "rate_limited"}, "authority_rate_limited"),
    "STI-PA: 429 with a date": (
        {"pa": "rate_limited", "retry_after_form": "date"},
        "authority_rate_limited",
    ),
    "STI-PA: no token": ({"token": "refused"}, "authority_refused"),
    "STI-PA: no token, politely": ({"token": "soft_refused"}, "authority_refused"),
    "STI-PA: token of a stranger": ({"token": "foreign"}, "authority_refused"),
    "STI-PA: list of a stranger": ({"ca_list": "foreign"}, "authority_refused"),
}


async def issuance(lab: Lab, subscriber: Subscriber, **different: Any) -> None:
    """All that is asked of STI-PA and STI-CA for one credential, in the keeper's order."""
    key, now = SoftKey(), int(time.time())
    customer = Customer(lab, subscriber, **{"poll_limit": 0.6, "timeout": 0.5} | different)
    settings = AuthoritySettings(
        url=lab.facts.pa_url,
        root=lab.facts.pa_root,
        user=lab.facts.pa_user,
        tls_ca=lab.facts.tls_ca,
        timeout=0.5,
    )
    password, root = text(lab.facts.pa_password_file), text(lab.facts.pa_root)
    async with (
        Authority("pa", settings, password=password, root_pem=root) as authority,
        customer.acme() as acme,
    ):
        trusted = await authority.trust_list(None, now)
        fingerprint = jose.fingerprint(
            customer.key.public_key, FingerprintKind.JWK_THUMBPRINT, LetterCase.UPPER
        )
        token = await authority.spc_token(
            account_id="1234",
            spc_tkvalue=jose.b64url(DER["1234"]),
            fingerprint=fingerprint,
            profile="one",
            spc="1234",
            now=now,
        )
        order = await acme.new_order(DER["1234"])
        await acme.authorize(order.url, token.jwt)
        await acme.finalize(order.url, make_csr(key.private))
        chain = await acme.collect(order.url)
        gate.accept(chain.pem, public_key=key.public_key, spc="1234", now=now, roots=trusted.roots)


def text(path: str) -> str:
    return Path(path).read_text()


@pytest.mark.parametrize("failure", FAILURES)
async def test_each_failure_has_its_class(lab: Lab, subscriber: Subscriber, failure: str) -> None:
    switches, wanted = FAILURES[failure]
    lab.set(**{"retry_after": 90} | switches)
    with pytest.raises(KmsdError) as failed:
        await issuance(lab, subscriber)
    assert failure_class(failed.value) == wanted, failed.value.reason
    if "rate_limited" in wanted:
        assert isinstance(failed.value, Unavailable)
        assert 85 <= failed.value.retry_after <= 95


async def test_an_sti_ca_whose_terms_nobody_agreed_to_is_one_that_refuses(
    lab: Lab, subscriber: Subscriber
) -> None:
    with pytest.raises(Misconfigured) as failed:
        await issuance(lab, subscriber, terms_of_service_agreed=False)
    assert failure_class(failed.value) is FailureClass.REFUSED


async def test_without_a_failure_there_is_none(lab: Lab, subscriber: Subscriber) -> None:
    await issuance(lab, subscriber)


def test_every_class_is_met() -> None:
    met = {wanted for _, wanted in FAILURES.values()}
    assert set(FailureClass) - met == {"stale", "ours"}, "neither is what a peer does"
