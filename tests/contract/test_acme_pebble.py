"""The ACME client's core against pebble, with 30 % of good nonces rejected."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsd.acme.client import Acme
from kmsd.acme.messages import Challenge, Identifier, Order, OrderStatus
from kmsd.errors import Invalid, Misconfigured, PeerRefused, Precondition, Unavailable
from kmsd.jose import b64url_decode
from kmsd.renewal import certificate_id
from kmsd.settings import Issuer
from tests.pebble import EAB_KEY_ID, EAB_MAC_KEY, Pebble, SoftKey, https_identity, running_pebble

NAMES = ("one.example", "two.example")


class AlwaysValid:
    """Answers http-01, which pebble then takes for granted."""

    def takes(self, challenge: Challenge) -> bool:
        return challenge.type == "http-01"

    async def response(self) -> dict[str, str]:
        return {}


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    with running_pebble(tmp_path_factory.mktemp("pebble"), nonce_reject=30) as running:
        yield running


@pytest.fixture(scope="module")
def pebble_for_customers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    folder = tmp_path_factory.mktemp("pebble-eab")
    with running_pebble(folder, nonce_reject=30, external_accounts=True) as running:
        yield running


def issuer_at(pebble: Pebble, **different: Any) -> Issuer:
    given: dict[str, Any] = {
        "directory": pebble.directory,
        "tls_ca": str(pebble.ca),
        "terms_of_service_agreed": True,
        "poll_limit": 20.0,
    }
    return Issuer(**(given | different))


def client(
    pebble: Pebble, key: SoftKey | None = None, *, account_url: str = "", **different: Any
) -> Acme:
    issuer = issuer_at(pebble, **different)
    return Acme("pebble", issuer, key or SoftKey(), account_url=account_url)


async def ordered(acme: Acme) -> Order:
    return await acme.new_order_for(Identifier("dns", name) for name in NAMES)


async def issued(acme: Acme, key: SoftKey) -> x509.Certificate:
    order = await ordered(acme)
    await acme.authorize_with(order.url, AlwaysValid())
    await acme.finalize(order.url, key.csr(*NAMES))
    chain = await acme.collect(order.url)
    return x509.load_pem_x509_certificates(chain.pem.encode())[0]


async def status_at(pebble: Pebble, certificate: x509.Certificate) -> dict[str, Any]:
    trust = ssl.create_default_context(cafile=pebble.ca)
    async with httpx.AsyncClient(verify=trust) as http:
        reply = await http.get(
            f"{pebble.management}/cert-status-by-serial/{certificate.serial_number:x}"
        )
    found: dict[str, Any] = reply.json()
    return found


async def test_from_no_account_to_a_certificate_for_the_key(pebble: Pebble) -> None:
    key = SoftKey()
    async with client(pebble, contact=("mailto:noc@example.com",)) as acme:
        leaf = await issued(acme, key)
    spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki == key.public_key
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(names.get_values_for_type(x509.DNSName)) == list(NAMES)


async def test_an_account_is_found_again_by_its_key(pebble: Pebble) -> None:
    key = SoftKey()
    async with client(pebble, key) as acme:
        first = await acme.ensure_account()
        assert await acme.ensure_account() == first
    async with client(pebble, key) as acme:
        assert await acme.ensure_account() == first
    async with client(pebble) as acme:
        assert await acme.ensure_account() != first


async def test_each_step_may_be_repeated_by_a_client_that_remembers_two_urls(
    pebble: Pebble,
) -> None:
    account_key, key = SoftKey(), SoftKey()
    csr = key.csr(*NAMES)
    async with client(pebble, account_key) as acme:
        account = await acme.ensure_account()
        order = await ordered(acme)
        assert order.status is OrderStatus.PENDING
        assert order.expires > 0
        await acme.authorize_with(order.url, AlwaysValid())
    async with client(pebble, account_key, account_url=account) as acme:
        assert (await acme.authorize_with(order.url, AlwaysValid())).status is OrderStatus.READY
        await acme.finalize(order.url, csr)
    async with client(pebble, account_key, account_url=account) as acme:
        await acme.finalize(order.url, csr)
        chain = await acme.collect(order.url)
    async with client(pebble, account_key, account_url=account) as acme:
        assert await acme.collect(order.url) == chain
        assert (await acme.authorize_with(order.url, AlwaysValid())).status is OrderStatus.VALID


@pytest.mark.parametrize("poll_target", ["authorization", "order"])
async def test_an_order_becomes_ready_whichever_of_the_two_is_polled(
    pebble: Pebble, poll_target: str
) -> None:
    async with client(pebble, rules={"poll_target": poll_target}) as acme:
        order = await ordered(acme)
        authorized = await acme.authorize_with(order.url, AlwaysValid())
    assert authorized.status is OrderStatus.READY


async def test_the_account_revokes_a_certificate_and_twice_is_as_good(pebble: Pebble) -> None:
    async with client(pebble) as acme:
        leaf = await issued(acme, SoftKey())
        der = leaf.public_bytes(Encoding.DER)
        assert (await status_at(pebble, leaf))["Status"] == "Valid"
        await acme.revoke(der, 4)
        await acme.revoke(der, 4)
    seen = await status_at(pebble, leaf)
    assert (seen["Status"], seen["Reason"]) == ("Revoked", 4)


async def test_a_certificates_own_key_revokes_it_without_an_account(pebble: Pebble) -> None:
    key = SoftKey()
    async with client(pebble) as acme:
        leaf = await issued(acme, key)
    async with client(pebble) as stranger:
        await stranger.revoke(leaf.public_bytes(Encoding.DER), 1, key)
    assert (await status_at(pebble, leaf))["Reason"] == 1


async def test_a_stranger_does_not_revoke_it(pebble: Pebble) -> None:
    async with client(pebble) as acme:
        leaf = await issued(acme, SoftKey())
    async with client(pebble) as stranger:
        with pytest.raises(PeerRefused) as refused:
            await stranger.revoke(leaf.public_bytes(Encoding.DER), 1)
        with pytest.raises(PeerRefused):
            await stranger.revoke(leaf.public_bytes(Encoding.DER), 1, SoftKey())
    assert refused.value.reason == "ACME_UNAUTHORIZED"
    assert "urn:ietf:params:acme:error:unauthorized" in refused.value.problem
    assert (await status_at(pebble, leaf))["Status"] == "Valid"


@pytest.mark.parametrize("reason", [-1, 7, 8, 11])
async def test_a_reason_that_does_not_exist_is_not_sent(pebble: Pebble, reason: int) -> None:
    async with client(pebble) as acme:
        with pytest.raises(Invalid) as refused:
            await acme.revoke(b"", reason)
    assert refused.value.reason == "REVOCATION_REASON_INVALID"


async def test_a_rolled_key_is_the_accounts_and_the_old_one_is_not(pebble: Pebble) -> None:
    old, new = SoftKey(), SoftKey()
    async with client(pebble, old) as acme:
        account = await acme.ensure_account()
        await acme.roll_key(new)
        await ordered(acme)
    async with client(pebble, new) as acme:
        assert await acme.ensure_account() == account
    async with client(pebble, old, account_url=account) as acme:
        with pytest.raises(PeerRefused):
            await ordered(acme)


async def test_a_roll_whose_reply_was_lost_may_be_repeated(pebble: Pebble) -> None:
    old, new = SoftKey(), SoftKey()
    async with client(pebble, old) as acme:
        account = await acme.ensure_account()
        await acme.roll_key(new)
    async with client(pebble, old, account_url=account) as acme:
        await acme.roll_key(new)
        await ordered(acme)


async def test_a_roll_before_a_crash_is_found_by_who_knows_the_two_keys_and_nothing_else(
    pebble: Pebble,
) -> None:
    old, new = SoftKey(), SoftKey()
    async with client(pebble, old) as acme:
        account = await acme.ensure_account()
        assert await acme.roll_key(new) == account
    async with client(pebble, old) as acme:
        assert await acme.find_account(old) == ""
        assert await acme.find_account(new) == account
        assert await acme.roll_key(new) == account
        await ordered(acme)
        assert await acme.find_account(old) == "", "no account was made for the old key"


async def test_where_neither_key_has_an_account_there_is_nothing_to_roll(pebble: Pebble) -> None:
    async with client(pebble) as acme:
        with pytest.raises(PeerRefused) as refused:
            await acme.roll_key(SoftKey())
    assert refused.value.reason == "ACME_ACCOUNT_DOES_NOT_EXIST"


async def test_a_server_without_renewal_information_suggests_nothing_and_takes_the_order(
    pebble: Pebble,
) -> None:
    async with client(pebble) as acme:
        leaf = await issued(acme, SoftKey())
        der = leaf.public_bytes(Encoding.DER)
        assert await acme.renewal_info(der) is None
        names = [Identifier("dns", name) for name in NAMES]
        order = await acme.new_order_for(names, replaces=certificate_id(der))
    assert order.status is OrderStatus.PENDING


async def test_a_key_that_has_an_account_is_not_rolled_to(pebble: Pebble) -> None:
    taken, own = SoftKey(), SoftKey()
    async with client(pebble, taken) as other:
        await other.ensure_account()
    async with client(pebble, own) as acme:
        await acme.ensure_account()
        with pytest.raises(PeerRefused) as refused:
            await acme.roll_key(taken)
        await ordered(acme)
    assert refused.value.reason == "ACME_KEY_IN_USE"


async def test_customers_are_bound_to_their_contract(pebble_for_customers: Pebble) -> None:
    issuer = issuer_at(pebble_for_customers, eab_key_id=EAB_KEY_ID)
    async with Acme("pebble", issuer, SoftKey(), mac_key=b64url_decode(EAB_MAC_KEY)) as acme:
        assert (await ordered(acme)).status is OrderStatus.PENDING


async def test_a_wrong_mac_key_is_refused_in_the_servers_words(
    pebble_for_customers: Pebble,
) -> None:
    issuer = issuer_at(pebble_for_customers, eab_key_id=EAB_KEY_ID)
    async with Acme("pebble", issuer, SoftKey(), mac_key=b"0" * 32) as acme:
        with pytest.raises(PeerRefused) as refused:
            await acme.ensure_account()
    assert refused.value.peer == "sti-ca"
    assert "urn:ietf:params:acme:error:" in refused.value.problem


async def test_who_is_no_customer_learns_what_to_configure(pebble_for_customers: Pebble) -> None:
    async with client(pebble_for_customers) as acme:
        with pytest.raises(Misconfigured) as wrong:
            await acme.ensure_account()
    assert wrong.value.reason == "ACME_EAB_REQUIRED"
    assert "eab_key_id" in wrong.value.next_step


async def test_a_key_id_without_its_mac_key_is_a_matter_of_configuration(
    pebble_for_customers: Pebble,
) -> None:
    async with client(pebble_for_customers, eab_key_id=EAB_KEY_ID) as acme:
        with pytest.raises(Misconfigured) as wrong:
            await acme.ensure_account()
    assert wrong.value.reason == "ACME_EAB_KEY_MISSING"


async def test_terms_are_agreed_to_by_the_operator_and_nobody_else(pebble: Pebble) -> None:
    async with client(pebble, terms_of_service_agreed=False) as acme:
        with pytest.raises(Misconfigured) as wrong:
            await acme.ensure_account()
    assert wrong.value.reason == "ACME_TERMS_NOT_AGREED"


async def test_an_identifier_the_server_does_not_know_is_refused_with_its_document(
    pebble: Pebble,
) -> None:
    async with client(pebble) as acme:
        with pytest.raises(PeerRefused) as refused:
            await acme.new_order(bytes.fromhex("3008a006160431323334"))
    assert "TNAuthList" in refused.value.problem


async def test_a_csr_for_other_names_is_refused_and_a_better_one_is_taken(pebble: Pebble) -> None:
    async with client(pebble) as acme:
        order = await ordered(acme)
        await acme.authorize_with(order.url, AlwaysValid())
        with pytest.raises(PeerRefused) as refused:
            await acme.finalize(order.url, SoftKey().csr("three.example"))
        assert refused.value.problem.startswith("{")
        await acme.finalize(order.url, SoftKey().csr(*NAMES))
        assert (await acme.collect(order.url)).pem.startswith("-----BEGIN CERTIFICATE-----")


async def test_an_order_is_not_finalized_before_it_is_authorized(pebble: Pebble) -> None:
    async with client(pebble) as acme:
        order = await ordered(acme)
        with pytest.raises(PeerRefused) as refused:
            await acme.finalize(order.url, SoftKey().csr(*NAMES))
        assert refused.value.reason == "ACME_ORDER_NOT_READY"
        with pytest.raises(Precondition) as early:
            await acme.collect(order.url)
        assert early.value.reason == "ACME_ORDER_NOT_FINALIZED"


async def test_the_accounts_own_key_gets_no_certificate(pebble: Pebble) -> None:
    key = SoftKey()
    async with client(pebble, key) as acme:
        order = await ordered(acme)
        with pytest.raises(Precondition) as refused:
            await acme.finalize(order.url, key.csr(*NAMES))
        with pytest.raises(Invalid):
            await acme.finalize(order.url, b"no CSR")
    assert refused.value.reason == "ACME_KEY_REUSED"


async def test_an_order_that_does_not_exist_is_not_found(pebble: Pebble) -> None:
    async with client(pebble) as acme:
        order = await ordered(acme)
        with pytest.raises(PeerRefused) as refused:
            await acme.order(order.url + "0")
    assert refused.value.reason == "ACME_NOT_FOUND"


async def test_a_forgotten_account_is_named_so(pebble: Pebble) -> None:
    async with client(pebble) as acme:
        account = await acme.ensure_account()
    async with client(pebble, account_url=account + "0") as acme:
        with pytest.raises(PeerRefused) as refused:
            await ordered(acme)
    assert refused.value.reason == "ACME_ACCOUNT_DOES_NOT_EXIST"


async def test_an_untrusted_certificate_names_the_file_it_was_checked_with(
    pebble: Pebble, tmp_path: Path
) -> None:
    other = https_identity(tmp_path)
    async with client(pebble, tls_ca=str(other.ca)) as acme:
        with pytest.raises(Unavailable, match=str(other.ca)) as failed:
            await acme.ensure_account()
    assert failed.value.reason == "ACME_TLS_FAILED"
