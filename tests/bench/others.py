"""What kmsd is compared with: the HSM alone, and secsipidx, a signer with a software key."""

import asyncio
import fcntl
import itertools
import os
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pkcs11

from tests.bench.figures import Order, Setup
from tests.bench.load import ORIG, Count, clock, dest

ORIGID: Final = "123e4567-e89b-42d3-a456-426655440000"
X5U: Final = "https://cr.example.org/0000000000000001.pem"
SAMPLE: Final = 16


class BareHsm:
    """The shortest loop there is around python-pkcs11's `sign`: one thread, one session."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._key: Any = None

    async def open(self) -> None:
        os.environ.update(self._setup.environment)
        module, token, pin, key_id = self._setup.hsm
        session = _session(module, token, Path(pin))
        [self._key] = session.get_objects(
            {
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY,
                pkcs11.Attribute.ID: bytes.fromhex(key_id),
            }
        )

    async def close(self) -> None:
        """Its process ends."""

    async def run(self, order: Order, count: Count) -> None:
        key, digest, mechanism = self._key, sha256(b"a call").digest(), pkcs11.Mechanism.ECDSA
        while (began := clock()) < order.end:
            for _ in range(SAMPLE):
                key.sign(digest, mechanism=mechanism)
            ended = clock()
            each = (ended - began) / SAMPLE
            count.signed(ended - each, ended, SAMPLE)


class Secsipidx:
    """POST /v1/sign-csv of `secsipidx -http-srv`, over connections that stay open."""

    def __init__(self, setup: Setup) -> None:
        host, _, port = setup.target.rpartition(":")
        self._address = host, int(port)
        self._connections = setup.connections
        self._posts = itertools.cycle([_post(dest(number)) for number in range(64)])
        self._open: list[_Http] = []

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._open = [
            (await loop.create_connection(_Http, *self._address))[1]
            for _ in range(self._connections)
        ]

    async def close(self) -> None:
        for connection in self._open:
            connection.close()

    async def run(self, order: Order, count: Count) -> None:
        rounds = [one.run(self._posts, order.end, count) for one in self._open]
        await asyncio.gather(*rounds)


class _Http(asyncio.Protocol):
    """One connection: a request, its answer, the next request. Reads no more than it must."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionError("secsipidx hung up"))

    def close(self) -> None:
        self._transport.close()

    def run(self, posts: "itertools.cycle[bytes]", end: float, count: Count) -> Any:
        """Sends until `end`; the future is done when the last request is answered."""
        self._posts, self._end, self._count = posts, end, count
        self._done = asyncio.get_running_loop().create_future()
        self._send()
        return self._done

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        start = self._received.find(b"Content-Length: ") + 16
        length = int(self._received[start : self._received.find(b"\r", start)])
        if len(self._received) < head + 4 + length:
            return
        now = clock()
        if self._received.startswith(b"HTTP/1.1 200") and b";alg=ES256" in self._received:
            self._count.signed(self._began, now)
        else:
            self._count.failed(self._received[:100])
        if now < self._end:
            self._send()
        elif self._done is not None:
            self._done.set_result(None)

    def _send(self) -> None:
        self._received = b""
        self._began = clock()
        self._transport.write(next(self._posts))


def _session(module: str, token: str, pin: Path) -> pkcs11.Session:
    with pin.open() as file:
        # SoftHSM writes the token at each login; whoever starts meanwhile may not find it.
        fcntl.flock(file, fcntl.LOCK_EX)
        there = pkcs11.lib(module).get_token(token_label=token)
        return there.open(user_pin=file.read().strip())


def _post(called: str) -> bytes:
    body = f"{ORIG},{called},A,{ORIGID},{X5U}".encode()
    head = f"POST /v1/sign-csv HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
