"""Any ASGI application over real HTTPS on a free loopback port, for as long as a test needs it."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from tests.pki import Signer


@asynccontextmanager
async def serving(app: ASGIApp, certificate: Signer, folder: Path) -> AsyncIterator[str]:
    """The base URL, without a slash at the end."""
    chain, key = folder / "https.pem", folder / "https.key"
    chain.write_text(certificate.pem)
    key.write_text(certificate.key_pem)
    config = uvicorn.Config(
        app,
        ssl_certfile=chain,
        ssl_keyfile=key,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    config.load()
    # Not `serve`: its loop looks ten times a second whether it is to stop, and tests are many.
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms an answer
        await server.startup(sockets=[listener])
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await server.shutdown(sockets=[listener])
