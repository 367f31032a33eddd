"""A real signer process: a real token, real mutual TLS, the assertions every endpoint holds to."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from kmsd_client import (
    ActiveCredential,
    AsyncClient,
    Denied,
    Overloaded,
    Refused,
    Shaken,
    Tls,
    Unavailable,
)
from kmsd_client import Signed as SignedPassport
from msgspec.structs import replace

from kmsd.lab import TlsFiles
from kmsd.model import BirthRecord
from tests.contract.signing_contract import ASSERTIONS, DEST, GOOD, ORIG, Assertion, Endpoint
from tests.contract.tokens import read_identity, verify_signature
from tests.system.programs import kill, until
from tests.system.signing_host import SigningHost


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SigningHost:
    return SigningHost(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def key(host: SigningHost) -> BirthRecord:
    return host.key()


@pytest.fixture(scope="module")
def serving(host: SigningHost, key: BirthRecord) -> Iterator[None]:
    host.activate(host.entry(key))
    with host.signer():
        host.until_serving()
        yield


@pytest.fixture
async def endpoint(host: SigningHost, key: BirthRecord, serving: None) -> AsyncIterator[Endpoint]:
    files = host.caller("as1")
    target = f"localhost:{host.port}"
    async with (
        AsyncClient(target, tls=tls(files), profile="acme", timeout=5) as client,
        grpc.aio.secure_channel(target, credentials(files)) as channel,
    ):

        async def public_key(_: str) -> ec.EllipticCurvePublicKey:
            return public(key)

        yield Endpoint(client, channel, "acme", public_key)


def tls(files: TlsFiles) -> Tls:
    return Tls(ca=files.ca, certificate=files.certificate, key=files.key)


def credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        files.ca.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
    )


def public(birth: BirthRecord) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(birth.public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def client_of(host: SigningHost, name: str = "as1") -> AsyncClient:
    return AsyncClient(
        f"localhost:{host.port}", tls=tls(host.caller(name)), profile="acme", timeout=5
    )


@pytest.mark.parametrize("assertion", ASSERTIONS, ids=lambda one: one.__name__)
async def test_the_signer_holds_to_the_contract_of_every_endpoint(
    endpoint: Endpoint, assertion: Assertion
) -> None:
    await assertion(endpoint)


async def test_a_caller_granted_b_cannot_get_an_a(host: SigningHost, serving: None) -> None:
    async with client_of(host, "as2") as client:
        await client.sign_shaken(ORIG, DEST, "B")
        with pytest.raises(Denied) as refused:
            await client.sign_shaken(ORIG, DEST, "A")
    assert refused.value.reason == "ATTEST_NOT_GRANTED"


async def test_a_caller_nobody_named_gets_no_signature(host: SigningHost, serving: None) -> None:
    async with client_of(host, "stranger") as client:
        with pytest.raises(Denied) as refused:
            await client.sign_shaken(ORIG, DEST, "C")
    assert refused.value.reason == "PROFILE_NOT_GRANTED"


async def test_without_a_client_certificate_nobody_gets_in(
    host: SigningHost, serving: None
) -> None:
    files = host.caller("as1")
    async with AsyncClient(
        f"localhost:{host.port}", tls=Tls(ca=files.ca), profile="acme"
    ) as client:
        with pytest.raises(Unavailable):
            await client.sign_shaken(ORIG, DEST, "C")


async def test_a_switch_gives_key_and_x5u_together_and_watchers_learn_at_once(
    tmp_path: Path,
) -> None:
    host = SigningHost(tmp_path)
    keys = {1: host.key(), 2: host.key()}
    host.activate(host.entry(keys[1], number=1))
    with host.signer():
        host.until_serving()
        async with client_of(host) as client:
            watched: list[object] = []

            async def watch() -> None:
                async for change in client.watch(["acme"]):
                    watched.append(change)  # noqa: PERF401  it is looked at before it ends

            watcher = asyncio.create_task(watch())
            numbers = []
            for turn in range(40):
                if turn == 15:
                    host.activate(host.entry(keys[2], number=2))
                token = read_identity(str(await client.sign_shaken(ORIG, DEST, "A")))
                number = int(token.x5u.rsplit("/", 1)[1].removesuffix(".pem"), 16)
                verify_signature(token, public(keys[number]))
                numbers.append(number)
                await asyncio.sleep(0.02)
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        assert numbers == sorted(numbers)
        assert set(numbers) == {1, 2}
        active = [change for change in watched if isinstance(change, ActiveCredential)]
        assert [change.x5u[-5] for change in active] == ["1", "2"]


async def test_a_key_the_hsm_does_not_have_never_replaces_one_that_works(tmp_path: Path) -> None:
    host = SigningHost(tmp_path)
    key = host.key()
    good = host.entry(key, number=1)
    host.activate(good)
    with host.signer():
        host.until_serving()
        missing = host.entry(key, number=2)
        host.activate(replace(missing, key_id="6b6d7364" + "00" * 12))
        until("the signer says so", lambda: _trouble(host))
        async with client_of(host) as client:
            token = read_identity(str(await client.sign_shaken(ORIG, DEST, "A")))
    assert token.x5u == good.x5u
    verify_signature(token, public(key))


async def test_a_key_whose_public_half_differs_is_not_used(tmp_path: Path) -> None:
    host = SigningHost(tmp_path)
    entry = host.entry(host.key())
    host.activate(replace(entry, spki_sha256="00" * 32))
    with host.signer():
        until("the signer says so", lambda: _trouble(host))
        async with client_of(host) as client:
            with pytest.raises(Refused) as refused:
                await client.sign_shaken(ORIG, DEST, "A")
    assert refused.value.reason == "PROFILE_NOT_ACTIVE"


async def test_a_signer_starts_without_its_hsm_and_serves_when_it_comes(tmp_path: Path) -> None:
    host = SigningHost(tmp_path)
    host.activate(host.entry(host.key()))
    tokens = tmp_path / "hsm" / "tokens"
    tokens.rename(tmp_path / "away")
    tokens.mkdir()
    with host.signer():
        until("it says why", lambda: "HSM_TOKEN_MISSING" in host.log())
        async with client_of(host) as client:
            with pytest.raises(Unavailable) as refused:
                await client.sign_shaken(ORIG, DEST, "A")
            assert refused.value.reason == "HSM_TOKEN_MISSING"
            tokens.rmdir()
            (tmp_path / "away").rename(tokens)
            host.until_serving()
            await client.sign_shaken(ORIG, DEST, "A")


def test_a_wrong_pin_is_tried_once_by_all_signers_of_a_host_together(tmp_path: Path) -> None:
    host = SigningHost(tmp_path)
    pin = Path(host.hsm.pin)
    right = pin.read_text()
    pin.write_text("not the pin\n")
    for index in (1, 2):
        with host.signer(index):
            until("it says so", partial(_says, host, index, "hsm_not_usable"))
    first, second = host.log(1), host.log(2)
    assert "reason=HSM_PIN_INCORRECT" in first
    assert "reason=HSM_PIN_REFUSED_BEFORE" in second
    assert "not the pin" not in first + second
    pin.write_text(right)
    host.activate(host.entry(host.key()))
    with host.signer():
        host.until_serving()


async def test_signing_goes_on_when_one_signer_of_two_is_killed(tmp_path: Path) -> None:
    host = SigningHost(tmp_path)
    host.activate(host.entry(host.key()))
    with host.signer(1) as first, host.signer(2):
        host.until_serving(1)
        host.until_serving(2)
        kill(first)
        async with client_of(host) as client:
            outcomes = await client.sign_many([GOOD] * 10)
        assert all(isinstance(outcome, SignedPassport) for outcome in outcomes)
        gone = host.acknowledged(1)
        assert gone is not None
        assert not gone.alive


async def test_a_signer_that_is_asked_to_stop_finishes_what_it_has(tmp_path: Path) -> None:
    host = SigningHost(tmp_path)
    host.activate(host.entry(host.key()))
    with host.signer() as process:
        host.until_serving()
        async with client_of(host) as client:
            frames = [asyncio.create_task(client.sign_many([GOOD] * 20)) for _ in range(10)]
            await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*frames, return_exceptions=True)
        until("it ends", lambda: process.poll() is not None)
    assert process.returncode == 0
    for answer in answers:
        assert isinstance(answer, Unavailable | Overloaded) or (
            isinstance(answer, list) and all(isinstance(one, SignedPassport) for one in answer)
        )


def test_two_signers_of_one_number_are_refused(tmp_path: Path) -> None:
    host = SigningHost(tmp_path)
    host.activate(host.entry(host.key()))
    with host.signer():
        host.until_serving()
        with host.signer() as second:
            until("it ends", lambda: second.poll() is not None)
        assert second.returncode == 4
        assert "SIGNER_INDEX_TAKEN" in host.log()


async def test_an_expired_certificate_signs_nothing(tmp_path: Path) -> None:
    host = SigningHost(tmp_path)
    entry = host.entry(host.key())
    host.activate(replace(entry, not_after=entry.not_before + 1))
    with host.signer():
        host.until_serving()
        async with client_of(host) as client:
            with pytest.raises(Refused) as refused:
                await client.sign(Shaken(ORIG, DEST, "A"))
    assert refused.value.reason == "CREDENTIAL_NOT_VALID"


def _says(host: SigningHost, index: int, word: str) -> bool:
    return word in host.log(index)


def _trouble(host: SigningHost) -> bool:
    one = host.acknowledged()
    if one is None or one.acknowledgement.epoch != host.keyring.epoch:
        return False
    return bool(one.acknowledgement.trouble)
