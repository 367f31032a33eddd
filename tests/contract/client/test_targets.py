"""Deadlines, several targets, retries, health and the end of a client."""

import asyncio
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from kmsd_client import AsyncClient, DeadlineExceeded, Denied, Signed, Tls, Unavailable

from tests.contract.client.calls import AWAY, CALL, GOOD, NO_GRANT, free_port, until
from tests.contract.software_signer import SoftwareSigner, served, signer_for
from tests.contract.tls_parts import Parts


async def test_a_slow_signer_is_a_deadline_exceeded_and_learns_the_deadline(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.delay = 30
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
        await client.sign_many([GOOD, GOOD], timeout=0.5)
    assert 0 < signer.time_left <= 0.5
    assert signer.calls == 1
    await until(lambda: signer.cancelled == 1)


async def test_a_cancelled_frame_is_cancelled_at_the_signer(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.delay = 30
    task = asyncio.create_task(client.sign_many([GOOD, GOOD]))
    await until(lambda: signer.calls == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: signer.cancelled == 1)


async def test_an_unreachable_signer_is_unavailable_without_waiting(nobody: str, tls: Tls) -> None:
    async with AsyncClient([nobody, nobody], tls=tls, timeout=600) as client:
        with pytest.raises(Unavailable) as caught:
            await client.sign_shaken(*CALL)
        assert caught.value.reason == "UNAVAILABLE"
        assert not await client.healthy()


async def test_a_silent_target_costs_the_deadline_and_no_more(silent: str, tls: Tls) -> None:
    async with AsyncClient([silent, silent], tls=tls, timeout=0.3) as client:
        with pytest.raises(DeadlineExceeded):
            await client.sign_shaken(*CALL)
        assert not await client.healthy()


async def test_a_good_target_is_found_among_silent_and_absent_ones(
    silent: str, nobody: str, target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    targets = [silent, nobody, target]
    async with AsyncClient(targets, tls=tls, profile="acme", timeout=10) as client:
        for _ in range(5):
            await client.sign_shaken(*CALL)
        assert await client.healthy()
    assert signer.calls == 5


async def test_unavailable_is_tried_at_another_target_and_a_refusal_is_not(
    parts: Parts, tls: Tls
) -> None:
    one, two = signer_for(["acme"]), signer_for(["acme"])
    async with AsyncExitStack() as stack:
        targets = [(await stack.enter_async_context(served(s, parts)))[0] for s in (one, two)]
        client = AsyncClient(targets, tls=tls, profile="acme", timeout=10, connections=1)
        await stack.enter_async_context(client)
        one.faults.next_calls, two.faults.next_calls = [AWAY], [AWAY]
        with pytest.raises(Unavailable) as caught:
            await client.sign_shaken(*CALL)
        assert caught.value.reason == "HSM_AWAY"
        assert (one.calls, two.calls) == (1, 1), "each asked once"
        one.faults.next_calls = [AWAY] * 100
        for _ in range(4):
            await client.sign_shaken(*CALL)
        one.faults.next_calls = two.faults.next_calls = [NO_GRANT]
        before = one.calls + two.calls
        with pytest.raises(Denied):
            await client.sign_shaken(*CALL)
        assert one.calls + two.calls == before + 1


async def test_calls_go_where_fewest_are_outstanding(parts: Parts, tls: Tls) -> None:
    slow, fast = signer_for(["acme"]), signer_for(["acme"])
    slow.faults.delay = 30
    async with AsyncExitStack() as stack:
        targets = [(await stack.enter_async_context(served(s, parts)))[0] for s in (slow, fast)]
        async with AsyncClient(
            targets, tls=tls, profile="acme", timeout=10, connections=1
        ) as client:
            await until(lambda: all(c.is_ready() for c in client._open()._connections))
            stuck = [asyncio.create_task(client.sign_many([GOOD])) for _ in range(2)]
            await until(lambda: slow.calls == 1)
            for _ in range(10):
                await client.sign_many([GOOD])
            assert slow.calls == 1
            for task in stuck:
                task.cancel()
            await asyncio.wait(stuck)


async def test_a_restarted_signer_is_used_again(
    signer: SoftwareSigner, parts: Parts, tls: Tls
) -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", tls=tls, profile="acme", timeout=10) as client:
        connection = client._open()._connections[0]
        for _ in range(2):
            with pytest.raises(Unavailable):
                await client.sign_shaken(*CALL)
            async with served(signer, parts, port):
                await until(connection.is_ready)
                await client.sign_shaken(*CALL)


async def test_a_connection_that_breaks_under_a_call_is_not_the_callers_concern(
    parts: Parts, tls: Tls
) -> None:
    dying, staying = signer_for(["acme"]), signer_for(["acme"])
    dying.faults.delay = 30
    async with AsyncExitStack() as stack:
        first, server = await stack.enter_async_context(served(dying, parts))
        second, _ = await stack.enter_async_context(served(staying, parts))
        client = AsyncClient([first, second], tls=tls, profile="acme", timeout=10, connections=1)
        await stack.enter_async_context(client)
        connections = client._open()._connections
        await until(lambda: all(c.is_ready() for c in connections))
        calls = [asyncio.create_task(client.sign_many([GOOD])) for _ in range(6)]
        await until(lambda: dying.calls == 3)
        await server.stop(None)
        assert all([isinstance((await call)[0], Signed) for call in calls])
        assert staying.calls == 6


async def test_one_name_with_several_addresses_is_several_signers(parts: Parts, tls: Tls) -> None:
    named = replace(tls, server_name="localhost")
    one, two = signer_for(["acme"]), signer_for(["acme"])
    one.faults.delay = two.faults.delay = 0.002
    async with AsyncExitStack() as stack:
        first, server = await stack.enter_async_context(served(one, parts))
        second, _ = await stack.enter_async_context(served(two, parts))
        name = f"ipv4:{first},{second}"  # what a DNS name becomes
        client = AsyncClient(
            name, tls=named, profile="acme", timeout=10, connections=20, frame_items=1
        )
        await stack.enter_async_context(client)

        async def calling() -> None:
            while not over.is_set():
                await client.sign_shaken(*CALL)

        over = asyncio.Event()
        callers = [asyncio.create_task(calling()) for _ in range(40)]
        await until(lambda: one.calls > 5 and two.calls > 5)
        await server.stop(None)
        before = two.calls
        await until(lambda: two.calls > before + 20)
        over.set()
        await asyncio.gather(*callers)


async def test_a_signer_that_does_not_serve_is_not_healthy(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    assert await client.healthy("kmsapi.v1.Signing")
    signer.faults.serving = b"\x08\x02"
    assert not await client.healthy()


async def test_close_lets_calls_finish_and_refuses_new_ones(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.delay = 0.2
    under_way = asyncio.create_task(client.sign_shaken(*CALL))
    await until(lambda: signer.calls == 1)
    await client.close()
    assert isinstance(await under_way, Signed)
    with pytest.raises(RuntimeError, match="closed"):
        await client.sign_shaken(*CALL)
    await client.close()


async def test_a_call_that_close_does_not_wait_for_is_unavailable(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.delay = 30
    under_way = asyncio.create_task(client.sign_shaken(*CALL))
    await until(lambda: signer.calls == 1)
    await client.close(grace=0)
    with pytest.raises(Unavailable) as caught:
        await under_way
    assert caught.value.reason == "CLOSED"


async def test_a_client_that_closes_while_it_connects_leaves_nobody_waiting(
    silent: str, tls: Tls
) -> None:
    client = AsyncClient([silent, silent], tls=tls, timeout=600)
    signing = asyncio.create_task(client.sign_shaken(*CALL))
    watching = asyncio.create_task(anext(client.watch(), None))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await client.close(grace=0)
        assert await watching is None
        with pytest.raises(Unavailable) as caught:
            await signing
    assert caught.value.reason == "CLOSED"


def test_a_client_of_another_event_loop_says_so(nobody: str) -> None:
    client = AsyncClient(nobody, tls=None)

    async def sign() -> None:
        await client.sign_shaken(*CALL)

    with pytest.raises(Unavailable):
        asyncio.run(sign())
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(sign())


def test_a_client_in_the_child_of_a_fork_says_so(nobody: str) -> None:
    program = f"""
import asyncio, os
from kmsd_client import AsyncClient, Unavailable

def sign():
    return client.sign_shaken("12155550112", "12155550113", "A")

async def main():
    try:
        await sign()
    except Unavailable:
        pass
    child = os.fork()
    if child == 0:  # the parent's coroutine goes on here, where no event loop runs
        try:
            sign().send(None)
        except RuntimeError as error:
            os._exit(17 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    await client.close()

client = AsyncClient({nobody!r}, tls=None)
asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


async def test_a_signer_that_does_not_serve_is_sent_nothing(parts: Parts, tls: Tls) -> None:
    away, there = signer_for(["acme"]), signer_for(["acme"])
    away.faults.serving = b"\x08\x02"
    async with served(away, parts) as (one, _), served(there, parts) as (other, _):
        async with AsyncClient([one, other], tls=tls, profile="acme", timeout=10) as client:
            for _ in range(5):
                assert isinstance(await client.sign_shaken(*CALL), Signed)
        assert away.frames == []
        assert len(there.frames) == 5
        async with AsyncClient(one, tls=tls, profile="acme", timeout=10) as client:
            # There is no other: whoever denies service says best why.
            assert isinstance(await client.sign_shaken(*CALL), Signed)


async def test_a_signer_is_asked_for_its_health_until_it_serves(parts: Parts, tls: Tls) -> None:
    away, there = signer_for(["acme"]), signer_for(["acme"])
    away.faults.serving = b"\x08\x02"
    async with (
        served(away, parts) as (one, _),
        served(there, parts) as (other, _),
        AsyncClient([one, other], tls=tls, profile="acme", timeout=10) as client,
    ):
        await client.sign_shaken(*CALL)
        await asyncio.sleep(0.5)
        await asyncio.gather(*(client.sign_shaken(*CALL) for _ in range(20)))
        assert away.frames == []
        away.faults.serving = b"\x08\x01"

        for _ in range(500):
            await client.sign_shaken(*CALL)
            if away.frames:
                break
            await asyncio.sleep(0.02)
        assert away.frames
