"""The lab's outermost layer: writes down every request, and breaks replies by switch.

Breaking happens on the wire and for all three roles alike, so the roles know nothing of it.
"""

import asyncio
import collections
import json
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from kmsd.lab.problem import PREFIX
from kmsd.lab.reply import retry_after
from kmsd.lab.switches import Board, Fault, Switches

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_KEPT = 20_000
_ROLES = {"pa": "pa", "ca": "ca", "cr": "cr", "hosted": "cr"}
_CHUNK = b" " * 65536
_HTML = b"<!doctype html><title>Welcome</title><p>Please sign in to the network.</p>"


@dataclass(frozen=True)
class Entry:
    """One request. status: of the reply; 0 when there was none. fault: the switch it met."""

    role: str
    method: str
    path: str
    status: int
    fault: str


class Log:
    """The last requests, oldest first."""

    def __init__(self) -> None:
        self._entries: collections.deque[Entry] = collections.deque(maxlen=_KEPT)

    def add(self, entry: Entry) -> None:
        self._entries.append(entry)

    def clear(self) -> None:
        self._entries.clear()

    def entries(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in list(self._entries)]


class Faults:
    """An ASGI application around `app`."""

    def __init__(self, app: App, board: Board, log: Log) -> None:
        self._app = app
        self._board = board
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        role = _role(scope["path"])
        if not role:
            await self._app(scope, receive, send)
            return
        fault = self._board.fault(role, scope["path"])

        def note(status: int) -> None:
            self._log.add(Entry(role, scope["method"], scope["path"], status, fault))

        await self._break(fault, scope, receive, _Wire(send, note))

    async def _break(self, fault: Fault, scope: Scope, receive: Receive, wire: "_Wire") -> None:
        switches = self._board.now
        match fault:
            case "unavailable":
                await wire.answer(503, _problem(503), *_later(switches))
            case "rate_limited":
                await wire.answer(429, _problem(429), *_later(switches))
            case "error":
                await wire.answer(500, _problem(500))
            case "missing":
                await wire.answer(404, _problem(404))
            case "html":
                await wire.answer(200, _HTML, ("content-type", "text/html"))
            case "redirect":
                location = f"/lab/redirected{scope['path']}"
                await wire.answer(302, b"", ("location", location))
            case "oversized":
                await wire.flood(switches.oversized_bytes)
            case "corrupt":
                await self._app(scope, receive, wire.corrupt)
            case "slow":
                await asyncio.sleep(switches.stall_seconds)
                await self._app(scope, receive, wire.pass_on)
            case "stall":
                wire.note(0)
                await asyncio.sleep(switches.stall_seconds)
                await wire.reset(receive)
            case "reset":
                await wire.reset(receive)
            case "reply_lost":
                await self._app(scope, receive, wire.swallow)
                await wire.reset(receive)
            case _:
                await self._app(scope, receive, wire.pass_on)


class _Wire:
    """One reply on its way out. It is written down before it leaves, so that whoever got it
    finds it in the log."""

    def __init__(self, send: Send, note: Callable[[int], None]) -> None:
        self._send = send
        self._note = note
        self._noted = False

    def note(self, status: int) -> None:
        """Writes the request down, once. status: 0 when there is no reply."""
        if not self._noted:
            self._note(status)
        self._noted = True

    async def pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.note(message["status"])
        await self._send(message)

    async def swallow(self, message: Message) -> None:
        """To nowhere."""

    async def corrupt(self, message: Message) -> None:
        body = message.get("body", b"")
        if body:
            spoiled = bytearray(body)
            spoiled[len(spoiled) // 2] ^= 1
            message = {**message, "body": bytes(spoiled)}
        await self.pass_on(message)

    async def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        all_headers = dict([("content-type", "application/problem+json"), *headers])
        all_headers["content-length"] = str(len(body))
        encoded = [(name.encode(), value.encode()) for name, value in all_headers.items()]
        await self.pass_on({"type": "http.response.start", "status": status, "headers": encoded})
        await self.pass_on({"type": "http.response.body", "body": body})

    async def flood(self, size: int) -> None:
        """JSON that does not end for `size` bytes; stops early when nobody listens."""
        headers = [(b"content-type", b"application/json")]
        await self.pass_on({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(size // len(_CHUNK)):
            await self.pass_on({"type": "http.response.body", "body": _CHUNK, "more_body": True})
            await asyncio.sleep(0)
        await self.pass_on({"type": "http.response.body", "body": b"{}"})

    async def reset(self, receive: Receive) -> None:
        """Resets the TCP connection. uvicorn's `send` is a method of what has the transport."""
        self.note(0)
        transport = self._send.__self__.transport  # type: ignore[attr-defined]
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        while (await receive())["type"] != "http.disconnect":
            pass


def _role(path: str) -> str:
    """Whose path it is; empty for the lab's own."""
    path = path if path.startswith("/") else f"/{path}"
    return (
        "elsewhere" if path.startswith("/lab/redirected/") else _ROLES.get(path.split("/")[1], "")
    )


def _later(switches: Switches) -> list[tuple[str, str]]:
    headers = retry_after(switches, switches.retry_after)
    return [(name.lower(), value) for name, value in headers.items()]


def _problem(status: int) -> bytes:
    kind = {404: "malformed", 429: "rateLimited"}.get(status, "serverInternal")
    return json.dumps({"type": PREFIX + kind, "status": status, "detail": "Switched off."}).encode()
