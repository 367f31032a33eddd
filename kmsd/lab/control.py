"""The lab's own endpoints: read and set the switches, read what was asked and done."""

from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kmsd.lab import jws
from kmsd.lab.faults import Log
from kmsd.lab.world import World


def routes(world: World, log: Log) -> list[Route]:
    """GET and POST /lab/switches, DELETE puts them back; GET and DELETE /lab/log."""

    async def switches(request: Request) -> Response:
        match request.method:
            case "POST":
                try:
                    world.board.set(jws.parse_object(await request.body()))
                except ValueError as error:
                    return JSONResponse({"error": str(error)}, 400)
            case "DELETE":
                world.board.reset()
        return JSONResponse(msgspec.structs.asdict(world.switches))

    async def read_log(request: Request) -> Response:
        if request.method == "DELETE":
            log.clear()
        return JSONResponse({"counts": world.book.counts(), "requests": log.entries()})

    return [
        Route("/lab/switches", switches, methods=["GET", "POST", "DELETE"]),
        Route("/lab/log", read_log, methods=["GET", "DELETE"]),
    ]


def write_atomically(path: Path, content: bytes) -> None:
    """The file is there whole, or as it was."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(content)
    draft.replace(path)
