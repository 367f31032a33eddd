"""The STI-CR: the same promises on a directory, in memory and on S3; and fetching back."""

import asyncio
import errno
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import MemoryStore, S3Store
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from kmsd.errors import Invalid, KmsdError, Misconfigured, PeerRefused, Precondition, Unavailable
from kmsd.repository import MEDIA_TYPE, Repository, check_public_url, only_certificates
from kmsd.repository.bucket import Bucket
from kmsd.settings import Repository as Settings
from tests.https_server import serving
from tests.pki import certify, https_certificate

ID = "00112233445566aa"
ROOT = certify("SHAKEN ROOT", ca=True)
LEAF = certify("SHAKEN 1234", ROOT)
CHAIN = LEAF.pem + ROOT.pem
OTHER_CHAIN_OF_THE_SAME_LEAF = LEAF.pem
OTHER_CHAIN = certify("SHAKEN 1234", ROOT).pem
PUBLIC_URL = "https://cr.example/"
CACHE_CONTROL = "public, max-age=604800, immutable"


class Place(NamedTuple):
    """A repository, and what is in it: name to octets."""

    repository: Repository
    content: Callable[[], dict[str, bytes]]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["directory", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    match request.param:
        case "directory":
            return in_directory(tmp_path / "cr")
        case "memory":
            return in_memory()
        case _:
            monkeypatch = request.getfixturevalue("monkeypatch")
            return on_s3(request.getfixturevalue("s3"), monkeypatch, tmp_path.name.lower())


def in_directory(folder: Path) -> Place:
    repository = Repository(Settings(url=folder.as_uri(), public_url=PUBLIC_URL))
    return Place(repository, lambda: {each.name: each.read_bytes() for each in folder.iterdir()})


def in_memory() -> Place:
    store = MemoryStore()
    shelf = Bucket(store, MEDIA_TYPE, CACHE_CONTROL)
    repository = Repository(Settings(public_url=PUBLIC_URL), shelf)
    return Place(repository, lambda: objects(store))


def on_s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, prefix: str) -> Place:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    httpx.put(f"{endpoint}/chains").raise_for_status()
    options = {"endpoint": endpoint, "region": "us-east-1", "allow_http": "true"}
    settings = Settings(url=f"s3://chains/{prefix}/", options=options, public_url=PUBLIC_URL)
    config: Any = {"endpoint": endpoint, "region": "us-east-1"}
    store = S3Store("chains", prefix=prefix, config=config, client_options={"allow_http": True})
    return Place(Repository(settings), lambda: objects(store))


def objects(store: MemoryStore | S3Store) -> dict[str, bytes]:
    found = {}
    for page in obstore.list(store):
        for each in page:
            got = obstore.get(store, each["path"])
            assert got.attributes["Content-Type"] == MEDIA_TYPE
            assert got.attributes["Cache-Control"] == CACHE_CONTROL
            found[each["path"]] = bytes(got.bytes())
    return found


async def test_a_chain_is_public_at_a_url_of_its_own(place: Place) -> None:
    x5u = await place.repository.publish(ID, CHAIN)
    assert x5u == f"https://cr.example/{ID}.pem" == place.repository.x5u(ID)
    assert place.content() == {f"{ID}.pem": CHAIN.encode()}


async def test_publishing_again_changes_nothing(place: Place) -> None:
    first = await place.repository.publish(ID, CHAIN)
    assert await place.repository.publish(ID, CHAIN) == first
    assert place.content() == {f"{ID}.pem": CHAIN.encode()}


async def test_a_rehearsals_chain_is_taken_away_and_nothing_else(place: Place) -> None:
    await place.repository.publish(ID, CHAIN)
    await place.repository.publish("ffffffffffffffff", OTHER_CHAIN)
    for _ in range(2):  # gone is gone
        await place.repository.withdraw(ID)
        assert place.content() == {"ffffffffffffffff.pem": OTHER_CHAIN.encode()}
    with pytest.raises(Invalid):
        await place.repository.withdraw("../secret")


async def test_a_public_chain_is_never_overwritten(place: Place) -> None:
    await place.repository.publish(ID, CHAIN)
    with pytest.raises(Precondition) as caught:
        await place.repository.publish(ID, OTHER_CHAIN)
    assert caught.value.reason == "X5U_TAKEN"
    assert place.content() == {f"{ID}.pem": CHAIN.encode()}


async def test_one_of_several_at_once_wins(place: Place) -> None:
    results = await asyncio.gather(
        *(place.repository.publish(ID, each) for each in (CHAIN, OTHER_CHAIN) * 4),
        return_exceptions=True,
    )
    assert sum(isinstance(each, str) for each in results) == 4
    assert sum(isinstance(each, Precondition) for each in results) == 4
    assert len(place.content()) == 1


BAD_CHAINS = {
    "a key before": ROOT.key_pem + CHAIN,
    "a key after": CHAIN + ROOT.key_pem,
    "a key alone": ROOT.key_pem,
    "an old key": CHAIN + ROOT.key_pem.replace(" PRIVATE", " EC PRIVATE"),
    "a key called certificate": ROOT.key_pem.replace("PRIVATE KEY", "CERTIFICATE"),
    "a key without its end": CHAIN + ROOT.key_pem.partition("-----END")[0],
    "parameters": CHAIN + "-----BEGIN EC PARAMETERS-----\nBggq\n-----END EC PARAMETERS-----\n",
    "text": "subject=CN\n" + CHAIN,
    "text after": CHAIN + "MHcCAQEEIA==\n",
    "nothing": "",
    "half a certificate": CHAIN[:400],
    "too much": CHAIN * 100,
    "no ASCII": CHAIN + "\N{SNOWMAN}",
}


@pytest.mark.parametrize("chain", BAD_CHAINS.values(), ids=BAD_CHAINS)
async def test_only_certificates_are_published(chain: str, tmp_path: Path) -> None:
    place = in_directory(tmp_path)
    with pytest.raises(Invalid) as caught:
        await place.repository.publish(ID, chain)
    assert caught.value.reason in ("PRIVATE_KEY_REFUSED", "CHAIN_NOT_PUBLISHABLE")
    assert ROOT.key_pem[40:80] not in str(caught.value)
    assert place.content() == {}


def test_a_private_key_is_called_one() -> None:
    with pytest.raises(Invalid) as caught:
        only_certificates((CHAIN + ROOT.key_pem).encode())
    assert caught.value.reason == "PRIVATE_KEY_REFUSED"


@pytest.mark.parametrize("credential_id", ["", "../../etc/x", "00112233445566AA", ID + "0", "x/y"])
async def test_a_name_that_is_no_credential_id_is_refused(
    credential_id: str, tmp_path: Path
) -> None:
    with pytest.raises(Invalid):
        await in_directory(tmp_path).repository.publish(credential_id, CHAIN)


async def test_everybody_may_read_a_chain_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        await in_directory(tmp_path).repository.publish(ID, CHAIN)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"{ID}.pem").stat().st_mode) == 0o644


async def test_a_chain_is_on_disk_before_its_url_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    link, sync = os.link, os.fsync

    def linked(*args: Any, **kwargs: Any) -> None:
        events.append("link")
        link(*args, **kwargs)

    def synced(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(f"sync {kind}")
        sync(descriptor)

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(os, "fsync", synced)
    await in_directory(tmp_path).repository.publish(ID, CHAIN)
    assert events == ["sync file", "link", "sync directory"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "REPOSITORY_DISK_FULL"),
        (errno.EDQUOT, "REPOSITORY_DISK_FULL"),
        (errno.EIO, "REPOSITORY_UNAVAILABLE"),
        (errno.EROFS, "REPOSITORY_NOT_WRITABLE"),
    ],
)
async def test_a_write_that_fails_late_leaves_nothing(
    number: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = in_directory(tmp_path)

    def failing(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(KmsdError) as caught:
            await place.repository.publish(ID, CHAIN)
    assert caught.value.reason == reason
    assert place.content() == {}
    await place.repository.publish(ID, CHAIN)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The real write fails halfway, as on a full disk; the process may write 100 octets a file."""
    program = (
        "import asyncio, resource, sys\n"
        "from kmsd.errors import Unavailable\n"
        "from kmsd.repository import Repository\n"
        "from kmsd.settings import Repository as Settings\n"
        "repository = Repository(Settings(url=sys.argv[1], public_url='https://cr.example/'))\n"
        "most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))\n"
        "try:\n"
        "    asyncio.run(repository.publish(sys.argv[2], sys.stdin.read()))\n"
        "except Unavailable as error:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        "    sys.exit(error.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path.as_uri(), ID],
        input=CHAIN,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "REPOSITORY_DISK_FULL\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place_there", ["link", "fifo", "folder"])
async def test_what_is_no_file_in_the_place_of_a_chain_is_not_taken_for_one(
    place_there: str, tmp_path: Path
) -> None:
    target, name = tmp_path / "secret", tmp_path / "cr" / f"{ID}.pem"
    target.write_text(CHAIN)
    name.parent.mkdir()
    match place_there:
        case "link":
            name.symlink_to(target)
        case "fifo":
            os.mkfifo(name)
        case _:
            name.mkdir()
    with pytest.raises(Precondition) as caught:
        await in_directory(name.parent).repository.publish(ID, CHAIN)
    assert caught.value.reason == "X5U_TAKEN"


async def test_a_directory_whose_parent_is_missing_is_the_operators_to_make(
    tmp_path: Path,
) -> None:
    with pytest.raises(Misconfigured) as caught:
        await in_directory(tmp_path / "no" / "cr").repository.publish(ID, CHAIN)
    assert caught.value.reason == "REPOSITORY_NOT_WRITABLE"


async def test_object_storage_that_is_not_there_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    options = {"endpoint": "http://127.0.0.1:9", "region": "x", "allow_http": "true"}
    settings = Settings(url="s3://chains/", options=options, public_url=PUBLIC_URL)
    with pytest.raises(Unavailable) as caught:
        await Repository(settings).publish(ID, CHAIN)
    assert caught.value.reason == "REPOSITORY_UNAVAILABLE"


async def test_a_bucket_that_is_not_ours_refuses(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    options = {"endpoint": s3, "region": "us-east-1", "allow_http": "true"}
    settings = Settings(url="s3://nobodys-bucket/", options=options, public_url=PUBLIC_URL)
    with pytest.raises(PeerRefused) as caught:
        await Repository(settings).publish(ID, CHAIN)
    assert (caught.value.reason, caught.value.peer) == ("REPOSITORY_REFUSED", "sti-cr")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(url="ftp://x/", public_url=PUBLIC_URL), "REPOSITORY_URL"),
        (Settings(url="", public_url=PUBLIC_URL), "REPOSITORY_URL"),
        (Settings(url="file://host/cr", public_url=PUBLIC_URL), "REPOSITORY_URL"),
        (
            Settings(url="memory:///", public_url=PUBLIC_URL, max_age_seconds=60),
            "REPOSITORY_MAX_AGE",
        ),
        (
            Settings(url="memory:///", public_url=PUBLIC_URL, tls_ca="/no/ca.pem"),
            "TLS_CA_UNREADABLE",
        ),
        (
            Settings(url="s3://b/", public_url=PUBLIC_URL, options={"bogus": "1"}),
            "REPOSITORY_OPTION",
        ),
        (
            Settings(
                url="s3://b/", public_url=PUBLIC_URL, options={"aws_secret_access_key": "hush"}
            ),
            "REPOSITORY_OPTION",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings: Settings, reason: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Repository(settings)
    assert caught.value.reason == reason
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://cr.example/",
        "https://cr.example",
        "https://cr.example/x",
        "https://user@cr.example/",
        "https://cr.example/?q/",
        "https://cr.example/#/",
        "https://cr.example/a;b/",
        "https://cr.example:port/",
        "https:///x/",
        "https://cr.example/ä/",
        "https://cr.example/a b/",
    ],
)
def test_a_url_that_verifiers_refuse_is_no_public_url(url: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        check_public_url(url)
    assert caught.value.reason == "PUBLIC_URL"


def test_an_uncommon_port_is_a_warning_only() -> None:
    assert check_public_url("https://cr.example/a/") == ()
    assert check_public_url("https://cr.example:8443/") == ()
    assert "port 9443" in check_public_url("https://cr.example:9443/")[0]
    assert Repository(Settings(url="memory:///", public_url="https://cr.example:1/")).lints


Answer = Callable[[Request], Response]


@pytest.fixture
async def cr(tmp_path: Path) -> AsyncIterator[Callable[[Answer], Awaitable[str]]]:
    """A public server that answers as told; gives the x5u."""
    answer: list[Answer] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer[-1](Request(scope, receive))(scope, receive, send)

    root = certify("HTTPS root", ca=True, since=0, until=2**32)
    (tmp_path / "ca.pem").write_text(root.pem)
    async with serving(app, https_certificate(root), tmp_path) as url:
        (tmp_path / "public-url").write_text(f"{url}/")

        async def tell(told: Answer) -> str:
            answer.append(told)
            return f"{url}/{ID}.pem"

        yield tell


def repository(folder: Path) -> Repository:
    """Public at whatever `cr` serves there."""
    tls_ca = str(folder / "ca.pem")
    public_url = (folder / "public-url").read_text()
    return Repository(Settings(url="memory:///", public_url=public_url, tls_ca=tls_ca))


def hosting(folder: Path) -> Repository:
    """Ours is elsewhere: what `cr` serves is another's."""
    tls_ca = str(folder / "ca.pem")
    return Repository(Settings(url="memory:///", public_url=PUBLIC_URL, tls_ca=tls_ca))


def answering(
    body: str = CHAIN,
    status: int = 200,
    media_type: str = MEDIA_TYPE,
    cache_control: str = CACHE_CONTROL,
) -> Answer:
    headers = {"Cache-Control": cache_control, "Content-Type": media_type}
    return lambda _: Response(body, status_code=status, headers=headers)


async def test_a_chain_that_is_served_as_published_is_accepted(cr: Any, tmp_path: Path) -> None:
    x5u = await cr(answering(media_type=f"{MEDIA_TYPE}; charset=utf-8"))
    assert await repository(tmp_path).fetch_back(x5u, CHAIN) == CHAIN


HOSTED = "subject=CN\r\n" + CHAIN.replace("\n", "\r\n")
"""The same certificates in the text of an STI-CA's own."""


@pytest.mark.parametrize("hosted", [CHAIN, HOSTED, OTHER_CHAIN_OF_THE_SAME_LEAF])
async def test_what_an_sti_ca_hosts_is_the_same_leaf_in_a_text_of_its_own(
    hosted: str, cr: Any, tmp_path: Path
) -> None:
    x5u = await cr(answering(hosted, media_type="application/x-pem-file", cache_control=""))
    elsewhere = hosting(tmp_path)
    assert await elsewhere.fetch_back(x5u, CHAIN) == hosted


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answering(OTHER_CHAIN), "X5U_DIFFERENT"),
        (answering(CHAIN + ROOT.key_pem), "X5U_DIFFERENT"),
        (answering(""), "X5U_DIFFERENT"),
        (answering("\N{SNOWMAN}"), "X5U_DIFFERENT"),
        (answering("x" * 1_000_000), "X5U_DIFFERENT"),
        (lambda _: RedirectResponse("https://cr.example/"), "X5U_REDIRECTED"),
    ],
)
async def test_an_sti_ca_that_hosts_anything_else_is_refused(
    answer: Answer, reason: str, cr: Any, tmp_path: Path
) -> None:
    with pytest.raises(PeerRefused) as caught:
        await hosting(tmp_path).fetch_back(await cr(answer), CHAIN)
    assert caught.value.reason == reason
    assert ROOT.key_pem[40:80] not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answering(OTHER_CHAIN), "X5U_DIFFERENT"),
        (answering(CHAIN + "\n"), "X5U_DIFFERENT"),
        (answering("x" * 1_000_000), "X5U_DIFFERENT"),
        (answering(media_type="text/plain"), "X5U_MEDIA_TYPE"),
        (answering(cache_control=""), "X5U_CACHE_CONTROL"),
        (answering(cache_control="public, max-age=60"), "X5U_CACHE_CONTROL"),
        (answering(cache_control="no-cache, max-age=604800"), "X5U_CACHE_CONTROL"),
        (answering(status=403), "X5U_REFUSED"),
        (lambda _: RedirectResponse("https://cr.example/"), "X5U_REDIRECTED"),
    ],
)
async def test_a_server_that_does_not_serve_the_chain_as_it_must_is_refused(
    answer: Answer, reason: str, cr: Any, tmp_path: Path
) -> None:
    with pytest.raises(PeerRefused) as caught:
        await repository(tmp_path).fetch_back(await cr(answer), CHAIN)
    assert (caught.value.reason, caught.value.peer) == (reason, "sti-cr")


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_a_chain_that_is_not_served_yet_is_waited_for(
    status: int, cr: Any, tmp_path: Path
) -> None:
    x5u = await cr(lambda _: PlainTextResponse("later", status_code=status))
    with pytest.raises(Unavailable) as caught:
        await repository(tmp_path).fetch_back(x5u, CHAIN)
    assert caught.value.reason == "X5U_NOT_SERVED"


async def test_a_server_that_is_not_trusted_or_not_there_is_unreachable(
    cr: Any, tmp_path: Path
) -> None:
    untrusting = Repository(Settings(url="memory:///", public_url=PUBLIC_URL))
    for each, x5u in [
        (untrusting, await cr(answering())),
        (repository(tmp_path), "https://127.0.0.1:9/x.pem"),
        (repository(tmp_path), "https://[/x.pem"),
    ]:
        with pytest.raises(Unavailable) as caught:
            await each.fetch_back(x5u, CHAIN)
        assert caught.value.reason == "X5U_UNREACHABLE"
