"""The lab as a whole: opens its folder, listens, serves until told to stop. The wiring diagram.

Two HTTPS listeners on loopback, in one thread with its own event loop: one for STI-PA, STI-CA
and control, one for the STI-CR (an x5u's port must be 443 or 8443, ATIS-1000074 5.3.1).
"""

import asyncio
import contextlib
import datetime
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kmsd.lab import control, jws, pki
from kmsd.lab.ca import CertificateAuthority
from kmsd.lab.cr import CertificateRepository
from kmsd.lab.faults import App, Faults, Log
from kmsd.lab.pa import PolicyAdministrator
from kmsd.lab.problem import PREFIX
from kmsd.lab.state import Book
from kmsd.lab.switches import CALM, Board, Dice, Switches
from kmsd.lab.tls import TlsAuthority, TlsFiles
from kmsd.lab.world import Subscriber, Urls, World

_USER = "lab-operator"
_START_SECONDS = 20.0


class Facts(msgspec.Struct, frozen=True):
    """What lab.json says: all that is needed to use the lab. Paths are absolute."""

    pa_url: str
    pa_root: str
    pa_user: str
    pa_password_file: str
    ca_directory: str
    ca_root: str
    tls_ca: str
    cr_url: str
    cr_dir: str
    eab_kid: str
    eab_mac_file: str
    control_url: str
    crl_url: str
    spcs: tuple[str, ...]
    pid: int


class Lab:
    """A running lab. facts: as in lab.json. tls: issues certificates for the demo's own TLS."""

    def __init__(self, facts: Facts, tls: TlsAuthority, world: World, log: Log) -> None:
        self.facts = facts
        self.tls = tls
        self.world = world
        self._log = log

    def set(self, **switches: Any) -> None:
        """Sets switches by name. Raises ValueError (msgspec) for what is none."""
        self.world.board.set(switches)

    def reset(self) -> None:
        """All switches as at the start."""
        self.world.board.reset()

    def counts(self) -> dict[str, int]:
        """accounts, orders, certificates, revocations, tokens, bad_nonces so far."""
        return self.world.book.counts()

    def requests(self) -> list[dict[str, Any]]:
        """What came: role, method, path, status, fault; oldest first."""
        return self._log.entries()


@contextlib.contextmanager
def running_lab(
    folder: Path,
    *,
    spcs: Sequence[str] = ("1234", "567A"),
    calm: bool = False,
    port: int = 0,
    cr_port: int = 0,
    cr_dir: Path | None = None,
    seed: int | None = None,
    clock: Callable[[], float] = time.time,
    **switches: Any,
) -> Iterator[Lab]:
    """A lab in `folder` that listens and has written lab.json, until the block is left.

    spcs: the subscriber's service provider codes, each its own STI-PA account id.
    port, cr_port: 0 takes a free one; a taken one is replaced by a free one.
    seed: makes the hostility repeatable. clock: seconds since the epoch.
    switches: initial values, over those of `calm`.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    chains = (cr_dir or folder / "cr").resolve()
    chains.mkdir(parents=True, exist_ok=True)
    board = Board(msgspec.convert((CALM if calm else {}) | switches, Switches))
    with contextlib.ExitStack() as stack:
        main, cr = (stack.enter_context(_listener(each)) for each in (port, cr_port))
        urls = Urls(_url(main), _url(cr))
        world = _world(folder, urls, tuple(spcs), board, Dice(seed), clock)
        tls = TlsAuthority(folder / "tls", world.today())
        log = Log()
        files = tls.server("lab")
        servers = {
            _server(Faults(_main_app(world, log), board, log), files): main,
            _server(Faults(_cr_app(world, chains), board, log), files): cr,
        }
        facts = _facts(folder, chains, world, tls)
        stack.enter_context(_serving(servers))
        control.write_atomically(
            folder / "lab.json", msgspec.json.format(msgspec.json.encode(facts)) + b"\n"
        )
        stack.callback((folder / "lab.json").unlink, missing_ok=True)
        yield Lab(facts, tls, world, log)


def _listener(port: int) -> socket.socket:
    """On that port of loopback, or on a free one when it is taken."""
    # asyncio sets TCP_NODELAY only where the protocol is named; without it a reply takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError:
        listener.close()
        if port == 0:
            raise
        return _listener(0)
    return listener


def _url(listener: socket.socket) -> str:
    return f"https://localhost:{listener.getsockname()[1]}"


def _world(
    folder: Path,
    urls: Urls,
    spcs: tuple[str, ...],
    board: Board,
    dice: Dice,
    clock: Callable[[], float],
) -> World:
    secret = _kept_secret(folder / "eab.key")
    password = _kept_secret(folder / "pa-password")
    now = datetime.datetime.fromtimestamp(int(clock()), datetime.UTC)
    return World(
        pki=pki.open_pki(folder / "pki", urls.crl, now),
        urls=urls,
        board=board,
        dice=dice,
        book=Book(),
        subscriber=Subscriber(_USER, password, spcs),
        eab={"lab-eab": jws.decode(secret)},
        started=int(clock()),
        clock=clock,
    )


def _kept_secret(path: Path) -> str:
    """32 random bytes in base64url, kept in a file of its owner's."""
    if not path.exists():
        pki.write_private(path, secrets.token_urlsafe(32).encode("ascii"))
    return path.read_text("ascii").strip()


def _main_app(world: World, log: Log) -> Starlette:
    pa = PolicyAdministrator(world)
    ca = CertificateAuthority(world, pa.published)
    everything = [*pa.routes, *ca.routes, *control.routes(world, log)]
    return Starlette(routes=everything, exception_handlers={HTTPException: _no_such_thing})


def _cr_app(world: World, chains: Path) -> Starlette:
    return Starlette(routes=CertificateRepository(world, chains).routes)


async def _no_such_thing(request: Request, error: Exception) -> Response:
    """404 and 405 in the words of whoever was asked."""
    assert isinstance(error, HTTPException)  # noqa: S101  what it is registered for
    if request.url.path.startswith("/ca/"):
        body = {"type": f"{PREFIX}malformed", "detail": error.detail, "status": error.status_code}
        return JSONResponse(body, error.status_code, media_type="application/problem+json")
    body = {"status": "error", "code": f"PA{error.status_code}", "message": error.detail}
    return JSONResponse(body, error.status_code)


def _server(app: App, files: TlsFiles) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ssl_certfile=files.certificate,
            ssl_keyfile=files.key,
            timeout_graceful_shutdown=1,
        )
    )


@contextlib.contextmanager
def _serving(servers: dict[uvicorn.Server, socket.socket]) -> Iterator[None]:
    """The servers run in a thread of their own; uvicorn leaves signals alone there."""

    async def serve() -> None:
        await asyncio.gather(*(server.serve([listener]) for server, listener in servers.items()))

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="lab", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not all(server.started for server in servers):
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the lab did not start")
            time.sleep(0.005)
        yield
    finally:
        for server in servers:
            server.should_exit = True
        thread.join()


def _facts(folder: Path, chains: Path, world: World, tls: TlsAuthority) -> Facts:
    return Facts(
        pa_url=world.urls.pa,
        pa_root=str(folder / "pki" / "pa-root.crt"),
        pa_user=world.subscriber.user,
        pa_password_file=str(folder / "pa-password"),
        ca_directory=f"{world.urls.ca}/directory",
        ca_root=str(folder / "pki" / "ca-root.crt"),
        tls_ca=str(tls.ca),
        cr_url=f"{world.urls.cr_base}/cr/",
        cr_dir=str(chains),
        eab_kid="lab-eab",
        eab_mac_file=str(folder / "eab.key"),
        control_url=f"{world.urls.base}/lab",
        crl_url=world.urls.crl,
        spcs=world.subscriber.spcs,
        pid=os.getpid(),
    )
