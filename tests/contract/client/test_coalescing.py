"""Single calls made at the same time travel together; a lone one does not wait for company."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from kmsd_client import AsyncClient, Client, Overloaded, Rcd, Refused, Shaken, Signed, Tls

from tests.contract.client.calls import CALL, GOOD
from tests.contract.signing_contract import BAD
from tests.contract.software_signer import SoftwareSigner, served, signer_for
from tests.contract.tls_parts import Parts
from tests.contract.tokens import read_identity


async def burst(client: AsyncClient, calls: int) -> list[Signed | BaseException]:
    """So many single calls at the same time, each to a number of its own."""
    passports = [Shaken("12155550112", str(12155550000 + n), "A") for n in range(calls)]
    return await asyncio.gather(*map(client.sign, passports), return_exceptions=True)


async def test_a_lone_call_is_alone_in_its_frame(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    for _ in range(5):
        await client.sign_shaken(*CALL)
    assert signer.frames == [1] * 5
    assert signer.streams == 1, "one connection is enough for it"


async def test_calls_of_the_same_time_are_one_frame_and_each_gets_its_own_signature(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    outcomes = await burst(client, 50)
    assert signer.frames == [50]
    for number, signed in enumerate(outcomes):
        assert isinstance(signed, Signed)
        assert read_identity(str(signed)).claims["dest"] == {"tn": [str(12155550000 + number)]}


async def test_a_frame_holds_no_more_than_its_limit(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10, frame_items=8) as client:
        assert all(isinstance(outcome, Signed) for outcome in await burst(client, 100))
    assert max(signer.frames) == 8
    assert sum(signer.frames) == 100


async def test_calls_gather_while_frames_are_under_way(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10, connections=1) as client:
        await client.sign_shaken(*CALL)
        signer.faults.delay = 0.2
        calls = []
        for number in range(12):
            calls.append(asyncio.create_task(client.sign_shaken(*CALL)))
            await asyncio.sleep(0.005 if number < 2 else 0)
        await asyncio.gather(*calls)
    assert signer.frames == [1, 1, 1, 10]


async def test_calls_of_different_profiles_are_different_frames(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    names = ["acme", "other"] * 10
    signed = await asyncio.gather(*(client.sign(GOOD, profile=name) for name in names))
    assert sorted(signer.frames) == [10, 10]
    for name, each in zip(names, signed, strict=True):
        assert read_identity(str(each)).x5u == signer.x5u(name)


async def test_hundreds_of_profiles_are_not_in_each_others_way(parts: Parts, tls: Tls) -> None:
    names = [f"profile-{number}" for number in range(300)]
    signer = signer_for(names[:1])
    signer.keys.update(dict.fromkeys(names, signer.keys[names[0]]))
    async with (
        served(signer, parts) as (target, _),
        AsyncClient(target, tls=tls, timeout=30) as client,
    ):
        signed = await asyncio.gather(*(client.sign(GOOD, profile=name) for name in names))
    assert [read_identity(str(each)).x5u for each in signed] == [signer.x5u(name) for name in names]


async def test_connections_are_made_as_calls_find_no_room(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10, connections=3) as client:
        signer.faults.delay = 0.1
        calls = []
        for _ in range(20):
            calls.append(asyncio.create_task(client.sign_shaken(*CALL)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*calls)
    assert signer.streams == 3


async def test_a_refused_item_spoils_no_other_of_its_frame(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    good, bad, last = await asyncio.gather(
        client.sign(GOOD), client.sign(BAD), client.sign(GOOD), return_exceptions=True
    )
    assert signer.frames == [3]
    assert isinstance(good, Signed)
    assert isinstance(bad, Refused)
    assert bad.reason == "TN_INVALID"
    assert isinstance(last, Signed)


async def test_a_refused_frame_is_refused_to_each_of_its_callers(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    calls = [client.sign(GOOD, profile="nobody") for _ in range(3)]
    errors = await asyncio.gather(*calls, client.sign(GOOD), return_exceptions=True)
    assert isinstance(errors.pop(), Signed)
    assert [error.reason for error in errors if isinstance(error, Refused)] == [
        "PROFILE_UNKNOWN"
    ] * 3
    assert len({id(error) for error in errors}) == 3, "an error of one's own"
    assert sorted(signer.frames) == [1, 3]


async def test_a_wrong_type_is_told_before_anything_is_sent(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    with pytest.raises(TypeError):
        await client.sign("a PASSporT")  # type: ignore[arg-type]
    assert signer.calls == 0


async def test_a_passport_that_is_too_large_to_share_travels_alone(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    large = Rcd("12155550112", "12155550113", nam="n" * 5000)
    enormous = Shaken("1" * 2_000_000, "12155550113", "A")
    outcomes = await asyncio.gather(
        client.sign(GOOD), client.sign(large), client.sign(GOOD), return_exceptions=True
    )
    assert all(isinstance(outcome, Signed) for outcome in outcomes)
    assert signer.frames == [2]
    assert signer.calls == 2
    with pytest.raises(Refused):
        await client.sign(enormous)


async def test_a_signer_with_shorter_frames_gets_shorter_frames(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    signer.frame_items = 10
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10) as client:
        assert all(isinstance(outcome, Signed) for outcome in await burst(client, 100))
        again = len(signer.frames)
        await burst(client, 100)
    assert max(signer.frames[again:]) <= 10


async def test_more_calls_than_may_wait_are_overloaded_at_once(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    signer.faults.delay = 0.2
    async with AsyncClient(
        target, tls=tls, profile="acme", timeout=10, connections=1, frame_items=1, queue_items=5
    ) as client:
        outcomes = await burst(client, 9)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert [error.reason for error in refused] == ["CLIENT_QUEUE_FULL"] * 4
        assert refused[0].metadata == {"limit": "5"}
        assert isinstance(await client.sign(GOOD), Signed)


async def test_the_calls_of_many_threads_travel_together(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    with Client(target, tls=tls, profile="acme", timeout=10, connections=1) as client:
        await asyncio.to_thread(client.sign_shaken, *CALL)
        signer.faults.delay = 0.3
        calls = []
        for _ in range(2):
            calls.append(asyncio.create_task(asyncio.to_thread(client.sign, GOOD)))
            await asyncio.sleep(0.05)
        calls += [asyncio.create_task(asyncio.to_thread(client.sign, GOOD)) for _ in range(3)]
        await asyncio.gather(*calls)
        refused = asyncio.to_thread(client.sign, BAD)
        with pytest.raises(Refused):
            await refused
        await asyncio.to_thread(client.close)
    assert signer.frames[:4] == [1, 1, 1, 3]


async def test_a_watch_goes_on_beside_signing(client: AsyncClient, signer: SoftwareSigner) -> None:
    async with AsyncExitStack() as stack:
        changes = client.watch(["acme"])
        stack.push_async_callback(changes.aclose)
        await anext(changes)
        outcomes = await burst(client, 100)
        assert all(isinstance(outcome, Signed) for outcome in outcomes)
        await anext(changes)
