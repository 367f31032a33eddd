"""The STI-CR: chains from a directory over HTTPS, as verifiers want them (PROTOCOL 3.8).

`/cr/...` serves what kmsd put into the directory, byte for byte; `/hosted/...` what the STI-CA
hosts for its customers (RFC 9448 section 7). A file with a private key is never served.
"""

import logging
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kmsd.lab.world import World

_LOG = logging.getLogger("kmsd.lab")
_LARGEST = 1024 * 1024
_MEDIA_TYPE = "application/pem-certificate-chain"
_HEADERS = {"Cache-Control": "public, max-age=604800"}


class CertificateRepository:
    """The STI-CR over `folder`. routes: for the application."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._folder = folder.resolve()
        self.routes = [
            Route("/cr/{path:path}", self._file, methods=["GET"]),
            Route("/hosted/{name}.pem", self._hosted, methods=["GET"]),
        ]

    async def _file(self, request: Request) -> Response:
        path = (self._folder / request.path_params["path"]).resolve()
        inside = path.is_relative_to(self._folder) and path.suffix == ".pem"
        if not inside or not path.is_file() or path.stat().st_size > _LARGEST:
            return Response("There is no such chain.\n", 404, media_type="text/plain")
        return _chain(path.read_bytes(), request.url.path)

    async def _hosted(self, request: Request) -> Response:
        issued = self._world.book.issued.get(request.path_params["name"])
        if issued is None:
            return Response("There is no such chain.\n", 404, media_type="text/plain")
        return _chain(_annotated(issued.chain), request.url.path)


def _annotated(chain: bytes) -> bytes:
    """The same certificates in another text, as hosts write it that keep names beside them."""
    return chain.replace(b"-----BEGIN", b"# a certificate\r\n-----BEGIN")


def _chain(content: bytes, path: str) -> Response:
    if b"PRIVATE KEY" in content:
        _LOG.error("private_key_not_served path=%s", path)
        return Response("This file holds a private key.\n", 500, media_type="text/plain")
    return Response(content, headers=_HEADERS, media_type=_MEDIA_TYPE)
