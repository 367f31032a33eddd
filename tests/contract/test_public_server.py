"""`kmsd repository` over real HTTPS: chains and nothing else."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import structlog

from kmsd import publicserver
from kmsd.errors import Misconfigured
from kmsd.repository import Repository
from kmsd.settings import Repository as Settings
from tests.https_server import serving
from tests.pki import certify, https_certificate

ID = "00112233445566aa"
ROOT = certify("SHAKEN ROOT", ca=True)
CHAIN = certify("SHAKEN 1234", ROOT).pem + ROOT.pem
HTTPS_ROOT = certify("HTTPS root", ca=True, since=0, until=2**32)
HTTPS = https_certificate(HTTPS_ROOT)


class Site(NamedTuple):
    folder: Path
    url: str
    client: httpx.AsyncClient


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    folder = tmp_path / "cr"
    (folder / "sub").mkdir(parents=True)
    (folder / f"{ID}.pem").write_text(CHAIN)
    (folder / "sub" / "a.pem").write_text(CHAIN)
    (tmp_path / "outside.pem").write_text(CHAIN)
    tls = ssl.create_default_context(cadata=HTTPS_ROOT.pem)
    async with (
        serving(publicserver.app(str(folder), 604800), HTTPS, tmp_path) as url,
        httpx.AsyncClient(verify=tls, base_url=url, trust_env=False) as client,
    ):
        yield Site(folder, url, client)


async def test_a_chain_is_served_as_verifiers_want_it(site: Site) -> None:
    response = await site.client.get(f"/{ID}.pem")
    assert (response.status_code, response.text) == (200, CHAIN)
    assert response.headers["Content-Type"] == "application/pem-certificate-chain"
    assert response.headers["Cache-Control"] == "public, max-age=604800, immutable"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert (await site.client.get("/sub/a.pem")).status_code == 200


async def test_a_head_is_a_get_without_the_body(site: Site) -> None:
    response = await site.client.head(f"/{ID}.pem")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Length"] == str(len(CHAIN))


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_a_chain_the_client_has_is_not_sent_again(form: str, site: Site) -> None:
    etag = (await site.client.get(f"/{ID}.pem")).headers["ETag"]
    headers = {"If-None-Match": form.format(etag)}
    response = await site.client.get(f"/{ID}.pem", headers=headers)
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == etag
    assert response.headers["Cache-Control"] == "public, max-age=604800, immutable"
    headers = {"If-None-Match": '"stale"'}
    assert (await site.client.get(f"/{ID}.pem", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/sub",
        "/sub/",
        "//sub/a.pem",
        "/sub//a.pem",
        "/nothing.pem",
        "/../outside.pem",
        "/sub/../../outside.pem",
        "/%2e%2e/outside.pem",
        "/..%2foutside.pem",
        "/%252e%252e/outside.pem",
        "/sub\\..\\..\\outside.pem",
        "/link.pem",
        "/inner-link.pem",
        "/linked/a.pem",
        "/fifo.pem",
        "/folder.pem",
        "/.hidden.pem",
        "/notes.txt",
        f"/{ID}.pem/",
        f"/{ID}.pem%00",
        f"/{ID}.PEM",
        f"/{ID}.pem/x.pem",
        "/" + "a" * 3000 + ".pem",
    ],
)
async def test_nothing_but_regular_chains_is_served(target: str, site: Site) -> None:
    (site.folder / "link.pem").symlink_to(site.folder.parent / "outside.pem")
    (site.folder / "inner-link.pem").symlink_to(site.folder / f"{ID}.pem")
    (site.folder / "linked").symlink_to(site.folder / "sub")
    (site.folder / "folder.pem").mkdir()
    (site.folder / ".hidden.pem").write_text(CHAIN)
    (site.folder / "notes.txt").write_text(CHAIN)
    os.mkfifo(site.folder / "fifo.pem")
    status, headers, body = await raw(site, f"GET {target} HTTP/1.1")
    assert status == 404
    assert "BEGIN" not in body
    assert "cache-control: no-store" in headers.lower()


async def raw(site: Site, request_line: str) -> tuple[int, str, str]:
    """A request whose target nobody tidies up on the way."""
    port = int(site.url.rpartition(":")[2])
    tls = ssl.create_default_context(cadata=HTTPS_ROOT.pem)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(f"{request_line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    headers, _, body = answer.partition("\r\n\r\n")
    return int(headers.split()[1]), headers, body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
async def test_nothing_can_be_done_but_reading(method: str, site: Site) -> None:
    response = await site.client.request(method, f"/{ID}.pem")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert (site.folder / f"{ID}.pem").read_text() == CHAIN


@pytest.mark.parametrize(
    "content",
    [CHAIN + ROOT.key_pem, ROOT.key_pem, "text\n" + CHAIN, "", CHAIN * 99],
    ids=["chain and key", "key", "text", "nothing", "too much"],
)
async def test_a_file_with_anything_but_certificates_is_withheld_and_reported(
    content: str, site: Site
) -> None:
    (site.folder / "bad.pem").write_text(content)
    with structlog.testing.capture_logs() as logs:
        response = await site.client.get("/bad.pem")
    assert response.status_code == 500
    assert "BEGIN" not in response.text
    assert response.headers["Cache-Control"] == "no-store"
    (entry,) = logs
    assert entry["log_level"] == "error"
    assert "PRIVATE KEY" not in str(entry)


async def test_what_the_repository_publishes_comes_back_from_the_server(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(HTTPS_ROOT.pem)
    settings = Settings(
        url=site.folder.as_uri(), public_url=f"{site.url}/", tls_ca=str(tmp_path / "ca.pem")
    )
    repository = Repository(settings)
    x5u = await repository.publish("ffeeddccbbaa0011", CHAIN)
    await repository.fetch_back(x5u, CHAIN)


def site_settings(folder: Path, port: int) -> Settings:
    (folder / "https.pem").write_text(HTTPS.pem)
    (folder / "https.key").write_text(HTTPS.key_pem)
    (folder / f"{ID}.pem").write_text(CHAIN)
    return Settings(
        url=folder.as_uri(),
        public_url=f"https://127.0.0.1:{port}/",
        listen=f"127.0.0.1:{port}",
        certificate=str(folder / "https.pem"),
        key=str(folder / "https.key"),
    )


def test_the_server_stops_when_asked_and_finishes_what_it_does(tmp_path: Path) -> None:
    """In a process of its own: it is stopped by a signal, as systemd does."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = site_settings(tmp_path, port)
    program = (
        "import asyncio, sys\n"
        "from kmsd import publicserver\n"
        "from kmsd.settings import Repository\n"
        "asyncio.run(publicserver.run(Repository(url=sys.argv[1], public_url=sys.argv[2],"
        " listen=sys.argv[3], certificate=sys.argv[4], key=sys.argv[5])))\n"
    )
    arguments = [settings.url, settings.public_url, settings.listen]
    arguments += [settings.certificate, settings.key]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=-3, stderr=-3)
    try:
        tls = ssl.create_default_context(cadata=HTTPS_ROOT.pem)
        with httpx.Client(verify=tls, trust_env=False) as client:
            for _ in range(200):
                try:
                    answer = client.get(f"{settings.public_url}{ID}.pem")
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
        assert answer.text == CHAIN
        assert "Server" not in answer.headers
        process.send_signal(signal.SIGTERM)
        # uvicorn raises the signal again when it is done, as whoever sent it expects.
        assert process.wait(15) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sent", [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /"])
async def test_who_never_finishes_a_request_is_not_waited_for(sent: bytes, tmp_path: Path) -> None:
    """Else a few hundred such connections keep every verifier out."""
    with publicserver.listening("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        serving = publicserver.server(site_settings(tmp_path, port), life=0.5)
        running = asyncio.create_task(serving.serve(sockets=[listener]))
        tls = ssl.create_default_context(cadata=HTTPS_ROOT.pem)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        writer.write(sent)
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        async with httpx.AsyncClient(verify=tls, trust_env=False) as client:
            for _ in range(3):
                answer = await client.get(f"https://127.0.0.1:{port}/{ID}.pem")
                assert answer.text == CHAIN
                await asyncio.sleep(0.3)
        serving.should_exit = True
        await running


async def test_an_address_in_use_is_the_operators_to_correct(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = site_settings(tmp_path, taken.getsockname()[1])
        with pytest.raises(Misconfigured) as caught:
            await publicserver.run(settings)
    assert caught.value.reason == "LISTEN"


@pytest.mark.parametrize("address", ["", "nonsense", "127.0.0.1:port", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_the_operators_to_correct(address: str) -> None:
    with pytest.raises(Misconfigured):
        publicserver.listening(address)


def test_ipv6_is_listened_on() -> None:
    with publicserver.listening("[::1]:0") as listener:
        assert listener.family is socket.AF_INET6


def test_no_answer_waits_for_an_acknowledgement() -> None:
    """asyncio leaves Nagle's algorithm on for sockets whose protocol was not named."""
    with publicserver.listening("127.0.0.1:0") as listener:
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(url="s3://x/", public_url="https://x/"), "REPOSITORY_NOT_A_DIRECTORY"),
        (Settings(url="file:///tmp", public_url="https://x/"), "REPOSITORY_TLS"),
        (
            Settings(url="file:///tmp", public_url="https://x/", certificate="/no", key="/no"),
            "REPOSITORY_TLS",
        ),
    ],
)
def test_settings_that_cannot_be_served_are_refused(settings: Settings, reason: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        publicserver.server(settings)
    assert caught.value.reason == reason
