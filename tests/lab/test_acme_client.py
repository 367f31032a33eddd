"""The ACME client against the lab: a hostile STI-CA that was written from the RFCs, not from it."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kmsd import jose
from kmsd.acme.chain import Chain
from kmsd.acme.client import Acme
from kmsd.acme.messages import OrderStatus
from kmsd.errors import KmsdError, PeerRefused, Unavailable
from kmsd.lab import Lab
from kmsd.settings import Encoding as TnEncoding
from kmsd.settings import Issuer
from tests.lab.parties import DER, Subscriber, make_csr, unb64
from tests.pebble import SoftKey

HOSTILE: dict[str, Any] = {
    "bad_nonce_share": 0.3,
    "delay_seconds": 0.2,
    "noise": True,
    "retry_after": 0,
}
DIALECTS: dict[str, dict[str, Any]] = {
    "rfc": {},
    "peeringhub": {
        "encoding": "base64",
        "challenge_field": "atc",
        "fingerprint": "spki",
        "empty_payload": "protected_only",
        "chain_media_type": "application/pem",
        "challenge_token": False,
    },
    "martini": {
        "encoding": "base64",
        "challenge_field": "atc",
        "fingerprint": "spki",
        "eab": "required",
        "order_x5u": True,
        "x5u_header": True,
    },
    "acme2certifier": {"encoding": "base64", "challenge_field": "atc"},
}


class Customer:
    """A provider with an account key at the lab's STI-CA and an account at its STI-PA."""

    def __init__(self, lab: Lab, subscriber: Subscriber, **settings: Any) -> None:
        given: dict[str, Any] = {
            "directory": lab.facts.ca_directory,
            "tls_ca": lab.facts.tls_ca,
            "terms_of_service_agreed": True,
            "poll_limit": 20.0,
            "timeout": 3.0,
        }
        self.issuer = Issuer(**(given | settings))
        self.rules = self.issuer.resolved()
        self.key = SoftKey()
        self.subscriber = subscriber
        self.mac_key = unb64(Path(lab.facts.eab_mac_file).read_text().strip())

    def acme(self) -> Acme:
        return Acme("lab", self.issuer, self.key, mac_key=self.mac_key)

    async def enroll(self, acme: Acme, key: SoftKey) -> Chain:
        order = await acme.new_order(DER["1234"])
        await acme.authorize(order.url, self.token)
        await acme.finalize(order.url, make_csr(key.private))
        return await acme.collect(order.url)

    async def token(self) -> str:
        encoded = jose.b64url(DER["1234"])
        if self.rules.tnauthlist_encoding is TnEncoding.BASE64:
            encoded += "=" * (-len(encoded) % 4)
        kind, case = self.rules.fingerprint_kind, self.rules.fingerprint_case
        fingerprint = jose.fingerprint(self.key.public_key, kind, case)
        return self.subscriber.token(self.key.private, tkvalue=encoded, fingerprint=fingerprint)


@pytest.fixture
def customer(lab: Lab, subscriber: Subscriber) -> Customer:
    lab.set(**HOSTILE)
    return Customer(lab, subscriber)


@pytest.mark.parametrize("preset", DIALECTS)
async def test_a_certificate_is_had_in_every_dialect(
    lab: Lab, subscriber: Subscriber, preset: str
) -> None:
    lab.set(**HOSTILE, **DIALECTS[preset])
    eab = {"eab_key_id": lab.facts.eab_kid} if preset == "martini" else {}
    customer = Customer(lab, subscriber, preset=preset, **eab)
    key = SoftKey()
    async with customer.acme() as acme:
        chain = await customer.enroll(acme, key)
    leaf = x509.load_pem_x509_certificates(chain.pem.encode())[0]
    assert leaf.public_key() == key.private.public_key()
    assert chain.x5u.startswith("https://") == (preset == "martini")


async def test_a_certificate_is_revoked_by_the_account_and_by_its_own_key(
    customer: Customer, lab: Lab
) -> None:
    before = lab.counts()["revocations"]
    for by_its_own in (False, True):
        key = SoftKey()
        async with customer.acme() as acme:
            chain = await customer.enroll(acme, key)
            leaf = x509.load_pem_x509_certificates(chain.pem.encode())[0]
            der = leaf.public_bytes(Encoding.DER)
            for _ in range(2):
                await acme.revoke(der, 4, key if by_its_own else None)
    assert lab.counts()["revocations"] == before + 2


async def test_after_a_roll_tokens_for_the_new_key_count(customer: Customer) -> None:
    async with customer.acme() as acme:
        await acme.ensure_account()
        customer.key = SoftKey()
        await acme.roll_key(customer.key)
        order = await acme.new_order(DER["1234"])
        assert (await acme.authorize(order.url, customer.token)).status is OrderStatus.READY


async def test_a_token_for_another_key_is_refused_in_the_sti_cas_words(customer: Customer) -> None:
    async with customer.acme() as acme:
        order = await acme.new_order(DER["1234"])
        with pytest.raises(PeerRefused) as refused:
            await acme.authorize(order.url, customer.subscriber.token(SoftKey().private))
    assert refused.value.reason == "ACME_ORDER_INVALID"
    assert "fingerprint" in refused.value.problem


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("rate_limited", Unavailable, "ACME_RATE_LIMITED"),
        ("challenge_refused", PeerRefused, "ACME_ORDER_INVALID"),
        ("never_ready", Unavailable, "ACME_POLL_LIMIT"),
        ("bad_csr", PeerRefused, "ACME_BAD_CSR"),
        ("never_issued", Unavailable, "ACME_POLL_LIMIT"),
        ("invalid", PeerRefused, "ACME_ORDER_INVALID"),
    ],
)
async def test_an_order_that_fails_says_for_which_reason(
    lab: Lab, subscriber: Subscriber, fault: str, kind: type[KmsdError], reason: str
) -> None:
    lab.set(**HOSTILE, order=fault)
    customer = Customer(lab, subscriber, poll_limit=1.5)
    async with customer.acme() as acme:
        with pytest.raises(kind) as failed:
            await customer.enroll(acme, SoftKey())
    assert failed.value.reason == reason


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("unavailable", Unavailable, "ACME_SERVER_INTERNAL"),
        ("error", Unavailable, "ACME_SERVER_INTERNAL"),
        ("missing", PeerRefused, "ACME_NOT_FOUND"),
        ("html", PeerRefused, "ACME_ANSWER_MALFORMED"),
        ("redirect", PeerRefused, "ACME_REDIRECT"),
        ("oversized", PeerRefused, "ACME_ANSWER_MALFORMED"),
        ("stall", Unavailable, "ACME_TIMEOUT"),
        ("reset", Unavailable, "ACME_CONNECTION_LOST"),
        ("reply_lost", Unavailable, "ACME_CONNECTION_LOST"),
    ],
)
async def test_a_new_order_that_meets_a_fault_is_had_by_asking_again(
    lab: Lab, subscriber: Subscriber, fault: str, kind: type[KmsdError], reason: str
) -> None:
    web = subscriber.web
    customer = Customer(lab, subscriber, timeout=0.5 if fault == "stall" else 3.0)
    async with customer.acme() as acme:
        await acme.ensure_account()
        path = httpx.URL(web.get(lab.facts.ca_directory).json()["newOrder"]).path
        lab.set(ca=fault, fault_path=path, fault_times=1, stall_seconds=1.0)
        with pytest.raises(kind) as failed:
            await acme.new_order(DER["1234"])
        assert failed.value.reason == reason
        assert (await acme.new_order(DER["1234"])).status is OrderStatus.PENDING
