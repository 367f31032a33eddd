"""Key change and revocation with keys that never leave an HSM, judged by the lab's STI-CA."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kmsd import certs, settings
from kmsd.acme.client import Acme
from kmsd.counterparts import HsmKey
from kmsd.errors import PeerRefused
from kmsd.hsm import Hsm, new_key_id
from kmsd.hsmthread import HsmThread
from kmsd.lab import Lab
from tests.lab.parties import DER, Subscriber
from tests.lab.test_acme_client import HOSTILE, Customer
from tests.pebble import SoftKey
from tests.softhsm import make_token

NOW = 1_800_000_000


@pytest.fixture
async def hsm(tmp_path: Path) -> AsyncIterator[HsmThread]:
    thread = HsmThread(make_token(tmp_path / "hsm"), tmp_path / "run")
    yield thread
    await thread.close()


@pytest.fixture
def customer(lab: Lab, subscriber: Subscriber) -> Customer:
    lab.set(**HOSTILE)
    return Customer(lab, subscriber)


async def made(hsm: HsmThread) -> tuple[str, HsmKey]:
    key_id = new_key_id()
    birth = await hsm(Hsm.generate, key_id, f"test {key_id}", NOW)
    return key_id, HsmKey(hsm, key_id, birth.public_key)


async def certified(customer: Customer, acme: Acme, hsm: HsmThread) -> tuple[bytes, HsmKey]:
    """A certificate (DER) for a new key in the HSM, and that key."""
    key_id, key = await made(hsm)

    def request(hsm: Hsm) -> bytes:
        return certs.build_csr(
            key.public_key,
            lambda digest: hsm.sign(key_id, digest),
            spc="1234",
            rules=customer.rules,
            subject=settings.Subject(country="US", organization="Voice of Tests"),
            suffix=key_id,
        )

    order = await acme.new_order(DER["1234"])
    await acme.authorize(order.url, customer.token)
    await acme.finalize(order.url, await hsm(request))
    leaf = x509.load_pem_x509_certificates((await acme.collect(order.url)).pem.encode())[0]
    return leaf.public_bytes(Encoding.DER), key


async def test_an_account_moves_from_one_key_in_the_hsm_to_another(
    customer: Customer, hsm: HsmThread
) -> None:
    (_, old), (_, new) = await made(hsm), await made(hsm)
    async with Acme("lab", customer.issuer, old) as acme:
        account = await acme.ensure_account()
        assert await acme.roll_key(new) == account
        await acme.new_order(DER["1234"])
    async with Acme("lab", customer.issuer, old) as restarted:
        assert await restarted.roll_key(new) == account


async def test_a_certificates_own_key_in_the_hsm_revokes_it(
    lab: Lab, customer: Customer, hsm: HsmThread
) -> None:
    async with customer.acme() as acme:
        certificate, key = await certified(customer, acme, hsm)
        _, other = await made(hsm)
    async with Acme("lab", customer.issuer, SoftKey()) as stranger:
        with pytest.raises(PeerRefused):
            await stranger.revoke(certificate, 1, other)
        await stranger.revoke(certificate, 1, key)
        await stranger.revoke(certificate, 1, key)
        assert await stranger.find_account(key) == "", "the key has no account for it"
    revoked = lab.world.book.revocation(x509.load_der_x509_certificate(certificate))
    assert revoked is not None
    assert revoked.reason == 1
