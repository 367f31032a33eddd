"""Following credentials across reconnects."""

import asyncio
from contextlib import aclosing

import pytest
from kmsapi.v1 import signing_pb2 as pb
from kmsd_client import (
    ActiveCredential,
    AsyncClient,
    CredentialChange,
    Denied,
    Synced,
    Tls,
    Withdrawn,
)

from tests.contract.client.calls import AWAY, NO_GRANT, free_port, until
from tests.contract.software_signer import SoftwareSigner, served
from tests.contract.tls_parts import Parts


async def test_a_watch_reconnects_and_tells_only_what_changed(
    signer: SoftwareSigner, parts: Parts, tls: Tls
) -> None:
    port = free_port()
    client = AsyncClient(f"127.0.0.1:{port}", tls=tls, timeout=10)
    async with asyncio.timeout(20), client, aclosing(client.watch()) as changes:

        async def told() -> list[CredentialChange]:
            heard = []
            async for change in changes:
                heard.append(change)
                if isinstance(change, Synced):
                    break
            return heard

        async with served(signer, parts, port):
            acme, other, synced = await told()
            assert isinstance(acme, ActiveCredential)
            assert acme.profile == "acme"
            assert isinstance(other, ActiveCredential)
            assert isinstance(synced, Synced)
            signer.changes[0].put_nowait(pb.CredentialEvent(epoch=2, withdrawn="other"))
            assert await anext(changes) == Withdrawn("other", 2)
        del signer.keys["acme"]
        async with served(signer, parts, port):
            back, gone, synced = await told()
            assert isinstance(back, ActiveCredential)
            assert back.profile == "other"
            assert gone == Withdrawn("acme", 1)


async def test_a_watch_begins_before_there_is_a_signer(
    signer: SoftwareSigner, parts: Parts, tls: Tls, nobody: str
) -> None:
    async with AsyncClient(nobody, tls=tls) as client, aclosing(client.watch()) as changes:
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.2)
        async with served(signer, parts, int(nobody.split(":")[1])), asyncio.timeout(10):
            assert isinstance(await first, ActiveCredential)


async def test_a_watch_ends_when_the_client_closes(
    client: AsyncClient, signer: SoftwareSigner, nobody: str, tls: Tls
) -> None:
    async def heard(watching: AsyncClient) -> int:
        return len([change async for change in watching.watch()])

    listening = asyncio.create_task(heard(client))
    await until(lambda: len(signer.changes) == 1)
    waiting_client = AsyncClient(nobody, tls=tls)
    waiting = asyncio.create_task(heard(waiting_client))
    await asyncio.sleep(0.1)
    await asyncio.gather(client.close(), waiting_client.close())
    async with asyncio.timeout(5):
        assert await listening == 3
        assert await waiting == 0


async def test_a_cancelled_watch_is_cancelled(client: AsyncClient, signer: SoftwareSigner) -> None:
    async def listen() -> None:
        async for _ in client.watch():
            pass

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(listen(), 0.3)
    assert len(signer.changes) == 1


async def test_a_watch_outlives_overload_and_ends_with_a_refusal(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [AWAY, NO_GRANT]
    with pytest.raises(Denied):
        await anext(client.watch())
    assert signer.calls == 2
