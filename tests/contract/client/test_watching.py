"""Following credentials across reconnects."""

import asyncio
from contextlib import aclosing

import pytest
from kmsapi.v1 import signing_pb2 as pb
from kmsd_client import (
    ActiveCredential,
    AsyncClient,
    CalledOff,
    ComingCredential,
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


def coming(profile: str, digit: str, epoch: int = 1) -> pb.CredentialEvent:
    return pb.CredentialEvent(
        epoch=epoch,
        coming=pb.ComingCredential(
            profile=profile,
            spc="1234",
            credential=digit * 16,
            x5u=f"https://cr.example.net/{digit}.pem",
            spki_sha256=digit * 64,
            not_before=5,
            not_after=9,
        ),
    )


def active(profile: str, digit: str, epoch: int) -> pb.CredentialEvent:
    announced = coming(profile, digit).coming
    fields = {name.name: getattr(announced, name.name) for name in announced.DESCRIPTOR.fields}
    return pb.CredentialEvent(epoch=epoch, active=pb.ActiveCredential(**fields))


async def test_what_is_coming_is_told_once_and_then_it_comes_or_is_called_off(
    signer: SoftwareSigner, parts: Parts, tls: Tls
) -> None:
    async with (
        served(signer, parts) as (target, _),
        AsyncClient(target, tls=tls, timeout=10) as client,
        asyncio.timeout(20),
        aclosing(client.watch(["acme"])) as changes,
    ):
        assert isinstance(await anext(changes), ActiveCredential)
        assert await anext(changes) == Synced(1)
        [stream] = signer.changes
        for event in (
            coming("acme", "2"),
            coming("acme", "2"),
            active("acme", "2", 2),
            pb.CredentialEvent(epoch=2, called_off="acme"),  # of nothing that was told
            coming("acme", "3", 2),
            pb.CredentialEvent(epoch=2, called_off="acme"),
            coming("acme", "4", 2),
            coming("acme", "5", 2),
        ):
            stream.put_nowait(event)
        announced = await anext(changes)
        assert announced == ComingCredential(
            "acme", "1234", "2" * 16, "https://cr.example.net/2.pem", "2" * 64, 5, 9, epoch=1
        )
        came = await anext(changes)
        assert isinstance(came, ActiveCredential)
        assert (came.x5u, came.epoch) == ("https://cr.example.net/2.pem", 2)
        told = [await anext(changes) for _ in range(4)]
        kinds = [ComingCredential, CalledOff, ComingCredential, ComingCredential]
        assert [type(change) for change in told] == kinds
        assert told[1] == CalledOff("acme", 2)


async def test_a_watch_that_reconnects_learns_what_is_not_coming_any_more(
    signer: SoftwareSigner, parts: Parts, tls: Tls
) -> None:
    port = free_port()
    client = AsyncClient(f"127.0.0.1:{port}", tls=tls, timeout=10)
    async with asyncio.timeout(20), client, aclosing(client.watch()) as changes:
        signer.soon = {"acme": coming("acme", "2"), "other": coming("other", "3")}
        async with served(signer, parts, port):
            told = [await anext(changes) for _ in range(5)]
            assert [type(one) for one in told[2:4]] == [ComingCredential] * 2
        signer.soon = {"other": coming("other", "3")}
        async with served(signer, parts, port):
            assert await anext(changes) == CalledOff("acme", 1)
            assert await anext(changes) == Synced(1)


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
