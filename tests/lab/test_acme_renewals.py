"""Renewal information, `replaces`, key change and revocation against the lab's STI-CA.

The lab was written from the RFCs and not from the client: what both hold is what they say.
"""

from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kmsd.acme.client import Acme
from kmsd.acme.messages import OrderStatus
from kmsd.errors import PeerRefused, Unavailable
from kmsd.lab import Lab
from kmsd.renewal import AFTER_FAILURE, RenewalInfo, certificate_id, renewal_moment
from tests.lab.parties import DER, Subscriber
from tests.lab.test_acme_client import HOSTILE, Customer
from tests.pebble import SoftKey


@pytest.fixture
def customer(lab: Lab, subscriber: Subscriber) -> Customer:
    lab.set(**HOSTILE, ari=True)
    return Customer(lab, subscriber)


async def issued(customer: Customer, acme: Acme) -> x509.Certificate:
    chain = await customer.enroll(acme, SoftKey())
    return x509.load_pem_x509_certificates(chain.pem.encode())[0]


def der(leaf: x509.Certificate) -> bytes:
    return leaf.public_bytes(Encoding.DER)


def path(lab: Lab, web: httpx.Client, resource: str) -> str:
    return httpx.URL(web.get(lab.facts.ca_directory).json()[resource]).path


async def suggested(acme: Acme, leaf: x509.Certificate) -> RenewalInfo:
    info = await acme.renewal_info(der(leaf))
    assert info is not None
    return info


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_renewal_is_suggested_within_the_lifetime_and_now_when_it_is_urgent(
    lab: Lab, customer: Customer, form: str
) -> None:
    lab.set(ari_retry_after=1000, retry_after_form=form)
    async with customer.acme() as acme:
        leaf = await issued(customer, acme)
        info = await suggested(acme, leaf)
        moment = renewal_moment(info.window, b"credential")
        assert leaf.not_valid_before_utc.timestamp() < moment < leaf.not_valid_after_utc.timestamp()
        assert info.explanation_url.startswith("https://")
        assert 990 <= info.retry_after <= 1005
        await acme.revoke(der(leaf), 4)
        urgent = await suggested(acme, leaf)
        assert renewal_moment(urgent.window, b"credential") < lab.world.now()


@pytest.mark.parametrize("fault", ["backwards", "empty", "no_offset", "not_times"])
async def test_a_window_that_is_none_is_an_error_of_its_own_and_renewals_go_on(
    lab: Lab, customer: Customer, fault: str
) -> None:
    async with customer.acme() as acme:
        leaf = await issued(customer, acme)
        lab.set(renewal=fault)
        with pytest.raises(PeerRefused) as refused:
            await acme.renewal_info(der(leaf))
        assert refused.value.reason == "ACME_RENEWAL_WINDOW_INVALID"
        await acme.new_order(DER["1234"], replaces=certificate_id(der(leaf)))


async def test_without_a_retry_after_the_next_question_is_in_six_hours(
    lab: Lab, customer: Customer
) -> None:
    async with customer.acme() as acme:
        leaf = await issued(customer, acme)
        lab.set(renewal="no_retry_after")
        assert (await suggested(acme, leaf)).retry_after == AFTER_FAILURE


async def test_a_renewal_replaces_its_predecessor_once_and_is_an_order_in_any_case(
    lab: Lab, customer: Customer
) -> None:
    async with customer.acme() as acme:
        name = certificate_id(der(await issued(customer, acme)))
        orders = [await acme.new_order(DER["1234"], replaces=name) for _ in range(2)]
        other = await acme.new_order(DER["567A"], replaces=name)  # not its successor at all
        unknown = await acme.new_order(DER["1234"], replaces="bm9uZQ.AQ")
    assert {order.status for order in (*orders, other, unknown)} == {OrderStatus.PENDING}
    book = lab.world.book.orders
    kept = [book[order.url.rpartition("/")[2]].replaces for order in (*orders, other, unknown)]
    assert kept == [name, "", "", ""]


async def test_an_order_whose_reply_was_lost_does_not_block_the_next(
    lab: Lab, customer: Customer, client: httpx.Client
) -> None:
    async with customer.acme() as acme:
        name = certificate_id(der(await issued(customer, acme)))
        lab.set(
            ca="reply_lost",
            fault_path=path(lab, client, "newOrder"),
            fault_times=1,
            bad_nonce_share=0.0,
        )
        with pytest.raises(Unavailable):
            await acme.new_order(DER["1234"], replaces=name)
        assert (await acme.new_order(DER["1234"], replaces=name)).status is OrderStatus.PENDING


FAULTS: dict[str, dict[str, Any]] = {
    "reply_lost": {"ca": "reply_lost"},
    "reset": {"ca": "reset"},
    "unavailable": {"ca": "unavailable"},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("account_known", [True, False])
async def test_a_key_change_that_met_a_fault_is_ended_by_a_client_that_starts_anew(
    lab: Lab, customer: Customer, client: httpx.Client, fault: str, account_known: bool
) -> None:
    new = SoftKey()
    async with customer.acme() as acme:
        account = await acme.ensure_account()
        accounts = lab.counts()["accounts"]
        url = path(lab, client, "keyChange")
        lab.set(**FAULTS[fault], fault_path=url, fault_times=1, bad_nonce_share=0.0)
        if fault == "reply_lost":
            assert await acme.roll_key(new) == account, "it looks whose key it is"
        else:
            with pytest.raises(Unavailable):
                await acme.roll_key(new)
    lab.set(ca="", fault_path="", fault_times=0, bad_nonce_share=0.3)
    url = account if account_known else ""
    async with Acme("lab", customer.issuer, customer.key, account_url=url) as acme:
        assert await acme.roll_key(new) == account
        assert await acme.find_account(customer.key) == ""
    assert lab.counts()["accounts"] == accounts


async def test_a_key_of_another_account_is_refused_with_409_and_left_alone(
    lab: Lab, subscriber: Subscriber, customer: Customer
) -> None:
    other = Customer(lab, subscriber)
    async with other.acme() as theirs, customer.acme() as acme:
        taken = await theirs.ensure_account()
        account = await acme.ensure_account()
        with pytest.raises(PeerRefused) as refused:
            await acme.roll_key(other.key)
        assert refused.value.reason == "ACME_KEY_IN_USE"
        assert await acme.find_account(other.key) == taken
        assert await acme.find_account(customer.key) == account


@pytest.mark.parametrize("by_its_own_key", [False, True])
async def test_a_revocation_whose_reply_was_lost_is_had_by_asking_again(
    lab: Lab, customer: Customer, client: httpx.Client, by_its_own_key: bool
) -> None:
    key = SoftKey()
    async with customer.acme() as acme:
        chain = await customer.enroll(acme, key)
        leaf = x509.load_pem_x509_certificates(chain.pem.encode())[0]
        url = path(lab, client, "revokeCert")
        lab.set(ca="reply_lost", fault_path=url, fault_times=1, bad_nonce_share=0.0)
        signer = key if by_its_own_key else None
        with pytest.raises(Unavailable):
            await acme.revoke(der(leaf), 1, signer)
        await acme.revoke(der(leaf), 1, signer)
    revoked = lab.world.book.revocation(leaf)
    assert revoked is not None
    assert revoked.reason == 1


async def test_another_key_and_another_account_do_not_revoke(
    lab: Lab, subscriber: Subscriber, customer: Customer
) -> None:
    async with customer.acme() as acme:
        leaf = await issued(customer, acme)
    async with Customer(lab, subscriber).acme() as stranger:
        for key in (None, SoftKey()):
            with pytest.raises(PeerRefused) as refused:
                await stranger.revoke(der(leaf), 1, key)
            assert refused.value.reason == "ACME_UNAUTHORIZED"
            assert "own key" in refused.value.next_step
    assert lab.world.book.revocation(leaf) is None
