"""`kmsd repository`: serves the directory of chains over HTTPS, for verifiers all over the world.

Only regular `*.pem` files with certificates and nothing else, by GET and HEAD; no listing, no
links, no redirects (PROTOCOL 3.8). Not here: writing the directory (`repository`). A site that
has a web server or a CDN of its own serves the same directory with that and does not need this.
"""

import asyncio
import hashlib
import os
import re
import socket
import stat
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from kmsd.errors import Invalid, Misconfigured
from kmsd.repository import LIMIT, MEDIA_TYPE, only_certificates
from kmsd.settings import Repository as Settings

GRACE_SECONDS = 5
"""How long answers under way may take to finish after a stop."""

LIFE_SECONDS = 30.0
"""A connection ends after this, and is cut off after as long again: nothing here takes longer."""

log = structlog.get_logger()


def app(directory: str, max_age: int) -> ASGIApp:
    """An ASGI application with the chains below `directory`, cacheable for `max_age` seconds.

    Answers 200 and 304 (If-None-Match, RFC 9110 section 13.1.2), 404, 405, and 500 for a file
    that holds anything but certificates.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            response = await asyncio.to_thread(_answer, request, directory, max_age)
            await response(scope, receive, send)

    return answer


def server(settings: Settings, life: float = LIFE_SECONDS) -> uvicorn.Server:
    """The HTTPS server for the directory that settings.url names, not started yet.

    life: seconds of a connection, instead of LIFE_SECONDS.
    Raises Misconfigured (REPOSITORY_NOT_A_DIRECTORY, REPOSITORY_TLS).
    """
    parts = urlsplit(settings.url)
    if parts.scheme != "file":
        raise Misconfigured(
            "REPOSITORY_NOT_A_DIRECTORY",
            f"repository.url is {settings.url!r}, and only a directory can be served.",
            next_step="Object storage serves its chains itself, or by a CDN.",
        )
    if not (settings.certificate and settings.key):
        # uvicorn would serve plain HTTP without a word.
        raise _no_tls("they are not set")

    def connection(**given: Any) -> H11Protocol:
        made = H11Protocol(**given)
        asyncio.get_running_loop().call_later(life, _end, made, life)
        return made

    config = uvicorn.Config(
        app(unquote(parts.path), settings.max_age_seconds),
        http=connection,  # type: ignore[arg-type]  # whatever makes a protocol will do
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    try:
        config.load()
    except OSError as error:
        raise _no_tls(str(error)) from error
    return uvicorn.Server(config)


async def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is under way.

    Raises Misconfigured (LISTEN and as `server`).
    """
    serving = server(settings)
    with listening(settings.listen) as listener:
        address = "{}:{}".format(*listener.getsockname()[:2])
        log.info("repository_serving", address=address, public_url=settings.public_url)
        await serving.serve(sockets=[listener])
    log.info("repository_stopped", address=address)


def listening(address: str) -> socket.socket:
    """A listening socket at `host:port` ([host]:port for IPv6). Raises Misconfigured (LISTEN)."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if not 0 <= int(port) < 65536:
            raise ValueError("there is no such port")
        listener = socket.create_server((host, int(port)), family=family, backlog=1024)
    except (OSError, ValueError) as error:
        raise Misconfigured(
            "LISTEN",
            f"repository.listen {address!r} cannot be listened on: {error}.",
            next_step="Set it to host:port of this machine that nothing else uses.",
        ) from error
    # asyncio sets this only on sockets made with their protocol named, which create_server does
    # not do: without it, every answer waits 40 ms for the client's delayed acknowledgement.
    # Connections inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _end(connection: H11Protocol, life: float) -> None:
    """uvicorn waits for ever for a request that does not come, or comes an octet a minute."""
    loop = asyncio.get_running_loop()
    if connection.transport is None:  # TLS is not agreed on yet: asyncio limits that
        loop.call_later(life, _end, connection, life)
    elif not connection.transport.is_closing():
        loop.call_later(life, connection.transport.abort)
        connection.shutdown()  # an answer under way may be finished


# ASCII, and no leading dot: drafts of chains have one.
_NAME = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,200}")


def _answer(request: Request, directory: str, max_age: int) -> Response:
    if request.method not in ("GET", "HEAD"):
        return _problem(405, {"Allow": "GET, HEAD"})
    path = request.scope["path"]
    chain = _chain(directory, path)
    if chain is None:
        return _problem(404)
    try:
        only_certificates(chain)
    except Invalid as error:
        log.error("repository_file_withheld", path=path, reason=error.reason)
        return _problem(500)
    etag = f'"{hashlib.sha256(chain).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": f"public, max-age={max_age}, immutable",
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
    }
    wanted = request.headers.get("If-None-Match", "")
    if wanted == "*" or etag in (each.strip().removeprefix("W/") for each in wanted.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(chain, headers=headers, media_type=MEDIA_TYPE)


def _chain(directory: str, path: str) -> bytes | None:
    """The regular file at `path`, reached without following a link; None: there is none."""
    *folders, name = path.removeprefix("/").split("/")
    if not name.endswith(".pem") or not all(map(_NAME.fullmatch, (*folders, name))):
        return None
    try:
        here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                inner = os.open(folder, flags, dir_fd=here)
                os.close(here)
                here = inner
            # Not blocking: a FIFO put there must not hold the thread.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(name, flags, dir_fd=here)
        finally:
            os.close(here)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            return os.read(file, LIMIT + 1)
        finally:
            os.close(file)
    except OSError:
        return None


def _no_tls(why: str) -> Misconfigured:
    return Misconfigured(
        "REPOSITORY_TLS",
        f"HTTPS cannot be served with repository.certificate and key: {why}.",
        next_step="Set both to PEM files that belong together.",
    )


def _problem(status: int, headers: dict[str, str] | None = None) -> Response:
    # Never cached: a chain may be published at this URL a second later.
    common = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    text = {404: "Not Found", 405: "Method Not Allowed"}.get(status, "Internal Server Error")
    return PlainTextResponse(f"{text}\n", status_code=status, headers=common | (headers or {}))
