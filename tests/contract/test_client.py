"""The client against a signer over mutual TLS: what it promises when things go wrong."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, closing
from pathlib import Path

import grpc
import pytest
from kmsapi.v1 import signing_pb2 as pb
from kmsd_client import (
    ActiveCredential,
    AsyncClient,
    Attest,
    Client,
    CredentialChange,
    DeadlineExceeded,
    Denied,
    Overloaded,
    Refused,
    Shaken,
    Signed,
    SigningError,
    Synced,
    Tls,
    Unavailable,
    Withdrawn,
)

from tests.contract.signing_contract import ASSERTIONS, Assertion, Endpoint, verified
from tests.contract.software_signer import Refusal, SoftwareSigner, served, signer_for
from tests.contract.tls_parts import Parts, make_parts

CALL: tuple[str, str, Attest] = ("12155550112", "12155550113", "A")
GOOD = Shaken("12155550112", "12155550113", "A")
AWAY = Refusal(grpc.StatusCode.UNAVAILABLE, "HSM_AWAY", "The HSM is away. Try again.")
FULL = Refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "Send less.", {"limit": "9"}, retry_after=2
)
NO_GRANT = Refusal(
    grpc.StatusCode.PERMISSION_DENIED, "PROFILE_NOT_GRANTED", "Not yours.", {"profile": "acme"}
)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return make_parts()


@pytest.fixture
def tls(parts: Parts) -> Tls:
    return Tls(parts.ca, parts.caller_certificate, parts.caller_key)


@pytest.fixture
def signer() -> SoftwareSigner:
    return signer_for(["acme", "other"])


@pytest.fixture
async def target(signer: SoftwareSigner, parts: Parts) -> AsyncIterator[str]:
    async with served(signer, parts) as (target, _):
        yield target


@pytest.fixture
async def client(target: str, tls: Tls) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10) as client:
        yield client


@pytest.fixture
def silent() -> Iterator[str]:
    """A target that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """A target where nobody listens."""
    return f"127.0.0.1:{free_port()}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for lives in gRPC
            await asyncio.sleep(0.01)


# --- the contract


@pytest.mark.parametrize("assertion", ASSERTIONS, ids=lambda a: a.__name__)
async def test_the_software_signer_holds_to(
    assertion: Assertion, client: AsyncClient, signer: SoftwareSigner, target: str, parts: Parts
) -> None:
    credentials = grpc.ssl_channel_credentials(parts.ca, parts.caller_key, parts.caller_certificate)
    async with grpc.aio.secure_channel(target, credentials) as channel:
        await assertion(Endpoint(client, channel, "acme", signer.public_key))


# --- errors


async def test_a_refusal_tells_reason_sentence_and_facts(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [NO_GRANT]
    with pytest.raises(Denied) as caught:
        await client.sign_shaken(*CALL)
    assert caught.value.reason == "PROFILE_NOT_GRANTED"
    assert caught.value.message == "Not yours."
    assert caught.value.metadata == {"profile": "acme"}


async def test_an_overloaded_signer_says_how_long_to_wait(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [FULL]
    with pytest.raises(Overloaded) as caught:
        await client.sign_shaken(*CALL)
    assert caught.value.retry_after == 2.5
    assert signer.calls == 1


async def test_a_status_without_reason_is_named_after_its_code(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.next_calls = [Refusal(grpc.StatusCode.INTERNAL, "", "boom")]
    with pytest.raises(SigningError) as caught:
        await client.sign_shaken(*CALL)
    assert type(caught.value) is SigningError
    assert caught.value.reason == "INTERNAL"


async def test_reasons_of_another_domain_are_not_taken_for_ours(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    foreign = Refusal(
        grpc.StatusCode.NOT_FOUND, "PROFILE_UNKNOWN", "no", domain="proxy.example.com"
    )
    signer.faults.next_calls = [foreign]
    with pytest.raises(Refused) as caught:
        await client.sign_shaken(*CALL)
    assert caught.value.reason == "NOT_FOUND"
    assert caught.value.metadata == {}


@pytest.mark.parametrize(
    "answer",
    [
        pb.SignResponse(sequence=99, results=[pb.SignResult(signed=pb.Signed(identity="x"))]),
        pb.SignResponse(sequence=1),
        pb.SignResponse(sequence=1, results=[pb.SignResult()]),
        pb.SignResponse(sequence=1, results=[pb.SignResult(signed=pb.Signed())]),
        pb.SignResponse(sequence=1, results=[pb.SignResult(signed=pb.Signed(identity="x"))] * 2),
    ],
    ids=["other sequence", "no result", "no outcome", "no identity", "two results"],
)
async def test_an_answer_that_does_not_fit_is_no_signature(
    client: AsyncClient, signer: SoftwareSigner, answer: pb.SignResponse
) -> None:
    signer.faults.next_calls = [answer]
    with pytest.raises(SigningError) as caught:
        await client.sign_shaken(*CALL)
    assert caught.value.reason == "BAD_ANSWER"


async def test_a_refused_frame_of_one_is_in_the_list_and_a_longer_one_raised(
    client: AsyncClient,
) -> None:
    [outcome] = await client.sign_many([GOOD], profile="nobody")
    assert isinstance(outcome, Refused)
    with pytest.raises(Refused):
        await client.sign_many([GOOD, GOOD], profile="nobody")
    assert await client.sign_many([]) == []


# --- deadlines, targets, retries


async def test_a_slow_signer_is_a_deadline_exceeded_and_learns_the_deadline(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.delay = 30
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
        await client.sign_shaken(*CALL, timeout=0.5)
    assert 0 < signer.time_left <= 0.5
    assert signer.calls == 1
    await until(lambda: signer.cancelled == 1)


async def test_a_cancelled_caller_cancels_the_signer(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    signer.faults.delay = 30
    task = asyncio.create_task(client.sign_shaken(*CALL))
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
        client = AsyncClient(targets, tls=tls, profile="acme", timeout=10)
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
        async with AsyncClient(targets, tls=tls, profile="acme", timeout=10) as client:
            await until(lambda: all(c.is_ready() for c in client._open()._connections))
            stuck = [asyncio.create_task(client.sign_shaken(*CALL)) for _ in range(2)]
            await until(lambda: slow.calls == 1)
            for _ in range(10):
                await client.sign_shaken(*CALL)
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
        client = AsyncClient([first, second], tls=tls, profile="acme", timeout=10)
        await stack.enter_async_context(client)
        connections = client._open()._connections
        await until(lambda: all(c.is_ready() for c in connections))
        calls = [asyncio.create_task(client.sign_shaken(*CALL)) for _ in range(6)]
        await until(lambda: dying.calls == 3)
        await server.stop(None)
        assert all([isinstance(await call, Signed) for call in calls])
        assert staying.calls == 6


# --- TLS


async def test_a_caller_without_certificate_gets_nothing(target: str, parts: Parts) -> None:
    async with AsyncClient(target, tls=Tls(parts.ca), timeout=10) as client:
        with pytest.raises(Unavailable):
            await client.sign_shaken(*CALL)


async def test_a_signer_of_another_authority_is_not_trusted(target: str, parts: Parts) -> None:
    other = make_parts()
    tls = Tls(other.ca, parts.caller_certificate, parts.caller_key)
    async with AsyncClient(target, tls=tls, timeout=10) as client:
        with pytest.raises(Unavailable):
            await client.sign_shaken(*CALL)


async def test_credentials_come_from_files_and_the_name_may_be_another(
    target: str, parts: Parts, tmp_path: Path
) -> None:
    for name in ("ca", "caller_certificate", "caller_key"):
        (tmp_path / name).write_bytes(getattr(parts, name))
    files = (tmp_path / "ca", str(tmp_path / "caller_certificate"), tmp_path / "caller_key")
    tls = Tls(*files, server_name="localhost")
    async with AsyncClient(target, tls=tls, profile="acme", timeout=10) as client:
        await client.sign_shaken(*CALL)
    wrong = Tls(*files, server_name="elsewhere.example")
    async with AsyncClient(target, tls=wrong, timeout=10) as client:
        with pytest.raises(Unavailable):
            await client.sign_shaken(*CALL)


async def test_unusable_tls_files_are_told_before_any_call(parts: Parts, tmp_path: Path) -> None:
    swapped = Tls(parts.ca, parts.caller_key, parts.caller_certificate)
    with pytest.raises(ValueError, match="tls key holds no PEM PRIVATE KEY"):
        await AsyncClient("localhost:1", tls=swapped).__aenter__()
    with pytest.raises(FileNotFoundError):
        await AsyncClient("localhost:1", tls=Tls(tmp_path / "none")).__aenter__()
    with pytest.raises(FileNotFoundError):
        Client("localhost:1", tls=Tls(tmp_path / "none")).__enter__()
    assert "kmsd-client" not in [thread.name for thread in threading.enumerate()]


# --- health


async def test_a_signer_that_does_not_serve_is_not_healthy(
    client: AsyncClient, signer: SoftwareSigner
) -> None:
    assert await client.healthy("kmsapi.v1.Signing")
    signer.faults.serving = b"\x08\x02"
    assert not await client.healthy()


# --- the end


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


# --- watching


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


# --- the blocking client


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
