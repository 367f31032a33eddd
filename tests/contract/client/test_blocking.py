"""The blocking front end: threads, forks and programs that end."""

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import pytest
from kmsd_client import (
    ActiveCredential,
    AsyncClient,
    Client,
    CredentialChange,
    Refused,
    Signed,
    SigningError,
    Synced,
    Tls,
    Unavailable,
)

from tests.contract.client.calls import CALL, GOOD, until
from tests.contract.signing_contract import Endpoint, verified
from tests.contract.software_signer import SoftwareSigner


async def test_many_threads_share_a_blocking_client(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    def work() -> list[Signed]:
        with (
            Client(target, tls=tls, profile="acme", timeout=10) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            assert client.healthy()
            with pytest.raises(Refused):
                client.sign_shaken("nobody", "12155550113", "A")
            return list(pool.map(lambda _: client.sign_shaken(*CALL), range(64)))

    signed = await asyncio.to_thread(work)
    assert len({each.origid for each in signed}) == 64


async def test_the_blocking_client_signs_every_type(
    target: str, tls: Tls, signer: SoftwareSigner
) -> None:
    orig, dest = "12155550112", "12155550113"

    def work() -> list[Signed | SigningError]:
        with Client(target, tls=tls, profile="acme", timeout=10) as client:
            return [
                client.sign_shaken(orig, dest, "A"),
                client.sign_base(orig, dest),
                client.sign_div(orig, dest, orig, 1),
                client.sign_rph(orig, dest, ["ets.0"]),
                client.sign_rcd(orig, dest, nam="x"),
                *client.sign_many([GOOD]),
            ]

    async with AsyncClient(target, tls=tls) as client, grpc.aio.insecure_channel(target) as channel:
        endpoint = Endpoint(client, channel, "acme", signer.public_key)
        ppts = []
        for each in await asyncio.to_thread(work):
            assert isinstance(each, Signed)
            ppts.append((await verified(endpoint, each)).ppt)
    assert ppts == ["shaken", "", "div", "rph", "rcd", "shaken"]


async def test_a_blocking_watch_ends_when_another_thread_closes(target: str, tls: Tls) -> None:
    client = Client(target, tls=tls, timeout=10)
    heard = list[CredentialChange]()

    def listen() -> None:
        heard.extend(client.watch())

    listening = asyncio.create_task(asyncio.to_thread(listen))
    first = await asyncio.to_thread(lambda: next(client.watch(["acme"])))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(client.close)
    await asyncio.wait_for(listening, 5)
    assert isinstance(first, ActiveCredential)
    assert [type(change) for change in heard] == [ActiveCredential, ActiveCredential, Synced]
    with pytest.raises(RuntimeError, match="closed"):
        client.healthy()


async def test_a_blocking_watch_can_be_left_early(target: str, tls: Tls) -> None:
    def work() -> CredentialChange:
        with (
            Client(target, tls=tls, timeout=10) as client,
            closing(client.watch(["acme"])) as changes,
        ):
            return next(changes)

    assert isinstance(await asyncio.to_thread(work), ActiveCredential)


@pytest.mark.parametrize(
    "program",
    [
        "client.close(); client.close()",
        "pass  # a program that forgets to close ends all the same",
        """
import os
child = os.fork()
if child == 0:
    try:
        client.sign_shaken("12155550112", "12155550113", "A")
    except RuntimeError as error:
        os._exit(17 if "fork" in str(error) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
""",
    ],
    ids=["closes", "forgets to close", "forks"],
)
def test_a_blocking_program_ends_cleanly_that(program: str, nobody: str) -> None:
    begin = f"""
from kmsd_client import Client, Unavailable
client = Client({nobody!r}, tls=None)
try:
    client.sign_shaken("12155550112", "12155550113", "A")
except Unavailable:
    pass
else:
    raise SystemExit(3)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", begin + program],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("grace", [10.0, 0.0])
async def test_closing_in_one_thread_answers_the_call_of_another(
    target: str, tls: Tls, signer: SoftwareSigner, grace: float
) -> None:
    signer.faults.delay = 0.3 if grace else 30
    client = Client(target, tls=tls, profile="acme", timeout=60)
    signing = asyncio.create_task(asyncio.to_thread(client.sign_shaken, *CALL))
    await until(lambda: signer.calls == 1)
    await asyncio.to_thread(client.close, grace)
    if grace:
        assert isinstance(await signing, Signed)
    else:
        with pytest.raises(Unavailable, match="CLOSED"):
            await signing
