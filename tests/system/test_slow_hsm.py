"""A signer on a network HSM, where one signature lasts milliseconds: a shim stands for it.

Nothing here depends on how fast this machine is: the HSM is held until what must not wait for
it has been answered, and then let go.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import pytest
from kmsd_client import AsyncClient, Refused, Shaken, Signed

from kmsd.model import BirthRecord
from tests.contract.signing_contract import DEST, ORIG
from tests.contract.tokens import read_identity, verify_signature
from tests.shim import HOUR, SlowHsm
from tests.system.signing_host import SigningHost
from tests.system.test_signer import public, tls

CALL = 0.002
SESSIONS = 16
FRAME = 64


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SigningHost:
    return SigningHost(tmp_path_factory.mktemp("host"), threads=SESSIONS, delay=CALL)


@pytest.fixture(scope="module")
def key(host: SigningHost) -> BirthRecord:
    return host.key()


@pytest.fixture(scope="module")
def slow(host: SigningHost, key: BirthRecord) -> Iterator[SlowHsm]:
    assert host.slow is not None
    host.activate(host.entry(key))
    with host.signer():
        host.until_serving()
        yield host.slow


@pytest.fixture
async def client(host: SigningHost, slow: SlowHsm) -> AsyncIterator[AsyncClient]:
    target = f"localhost:{host.port}"
    async with AsyncClient(
        target, tls=tls(host.caller("as1")), profile="acme", timeout=30
    ) as client:
        yield client


async def test_every_signature_is_right_and_in_its_place(
    client: AsyncClient, slow: SlowHsm, key: BirthRecord
) -> None:
    before = slow.calls
    answer = await client.sign_many(calls_to(dests()))
    for dest, outcome in zip(dests(), answer, strict=True):
        assert isinstance(outcome, Signed)
        token = read_identity(str(outcome))
        verify_signature(token, public(key))
        assert token.claims["dest"] == {"tn": [dest]}
    assert slow.calls == before + FRAME


async def test_health_and_refusals_are_answered_while_the_hsm_holds_a_frame(
    client: AsyncClient, slow: SlowHsm
) -> None:
    with held(slow):
        frame = asyncio.create_task(client.sign_many(calls_to(dests())))
        await until_inside(slow, 1)
        assert await client.healthy()
        with pytest.raises(Refused) as unknown:
            await client.sign_shaken(ORIG, DEST, "A", profile="nobody")
        with pytest.raises(Refused) as hopeless:
            await client.sign_shaken("not a number", DEST, "A")
        assert unknown.value.reason == "PROFILE_NOT_ACTIVE"
        assert hopeless.value.reason == "TN_INVALID"
        assert not frame.done()
    assert all(isinstance(outcome, Signed) for outcome in await frame)


async def test_a_signer_has_as_many_signatures_under_way_as_it_has_sessions(
    client: AsyncClient, slow: SlowHsm
) -> None:
    with held(slow):
        calls = [
            asyncio.create_task(client.sign_shaken(ORIG, dest, "A")) for dest in dests()[:SESSIONS]
        ]
        await until_inside(slow, SESSIONS)
    await asyncio.gather(*calls)
    assert slow.most == SESSIONS


async def test_a_frame_is_spread_over_all_sessions_that_are_free(
    client: AsyncClient, slow: SlowHsm
) -> None:
    with held(slow):
        frame = asyncio.create_task(client.sign_many(calls_to(dests())))
        await until_inside(slow, SESSIONS)
    assert all(isinstance(outcome, Signed) for outcome in await frame)


def dests() -> list[str]:
    """The called numbers of one frame."""
    return [str(int(DEST) + item) for item in range(FRAME)]


def calls_to(numbers: Sequence[str]) -> list[Shaken]:
    return [Shaken(ORIG, dest, "A") for dest in numbers]


@contextmanager
def held(slow: SlowHsm) -> Iterator[None]:
    """Signatures that begin in this block do not end in it."""
    slow.delay = HOUR
    try:
        yield
    finally:
        slow.delay = CALL


async def until_inside(slow: SlowHsm, signatures: int) -> None:
    """Waits until that many signatures are being made."""
    async with asyncio.timeout(20):
        while slow.inside < signatures:  # noqa: ASYNC110  another process's memory has no event
            await asyncio.sleep(0.01)
