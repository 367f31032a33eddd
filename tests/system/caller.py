"""An STI-AS with calls of its own, as a program: it signs through kmsd_client at a steady rate and
holds every PASSporT, the moment it has it, to the chain at the PASSporT's own x5u.

That is what an STI-VS does (RFC 8224 section 6.2): the chain is fetched over HTTPS when its URL
is seen for the first time, checked up to the STI-CA's root, and its leaf's key must have signed.
Nothing of kmsd is used. A program of its own, because latencies are told, and a test has other
things to do: `python -m tests.system.caller` reads its Orders as JSON, then one command a line.
"""

import asyncio
import json
import math
import subprocess
import sys
import time
from asyncio import Task
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from ssl import create_default_context

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from kmsd_client import AsyncClient, Overloaded, Tls

from tests.contract.tokens import read_identity, verify_signature
from tests.system.key_room import DEST, ORIG, KeyRoom

SHOWN = 5
"""Failures of which the words are kept."""
SATURATED = 64
"""Calls under way at once when it is to find out how much can be signed."""
PATIENCE = 20
"""How often a call is made again at a signer that has too much to do."""


@dataclass(frozen=True)
class Orders:
    """Whom it signs for, at which signers, and what it trusts (paths of PEM files).

    connections: to the signers, so that calls reach all that share the port.
    """

    target: str
    profile: str
    tls: dict[str, str]
    https_ca: str
    ca_root: str
    connections: int = 2


@dataclass
class Tally:
    """What came of the calls since the tally before it.

    asked_again: how often a signer had too much to do. why: of the first that failed. by_x5u: how
    many verified against each chain. seconds: how long it counted. p50, p99, worst: milliseconds
    from the call to the signature; what was verified then is not in them.
    """

    signed: int = 0
    failed: int = 0
    asked_again: int = 0
    why: list[str] = field(default_factory=list)
    by_x5u: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    worst: float = 0.0


class Caller:
    """The program, from the test's side."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self._child = child

    def calls(self, rate: float) -> None:
        """Makes so many calls a second from now on, come what may; infinitely many: as many as
        are answered, to find out how many that is."""
        self._say("rate", rate)

    def tally(self) -> Tally:
        """What came of the calls since the last time, when no call is left without an answer."""
        self._say("tally", 0)
        return Tally(**json.loads(self._heard()))

    def last(self) -> str:
        """The Identity header value that it verified last."""
        self._say("last", 0)
        return str(json.loads(self._heard()))

    def _say(self, verb: str, number: float) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{verb} {number}\n")
        self._child.stdin.flush()

    def _heard(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line, "the caller has ended; why is in its log"
        return line


@contextmanager
def calling(room: KeyRoom, profile: str = "acme") -> Iterator[Caller]:
    """A caller of the room's signers; it makes no calls yet."""
    files = room.tls()
    orders = Orders(
        target=room.target,
        profile=profile,
        tls={name: str(getattr(files, name)) for name in ("ca", "certificate", "key")},
        https_ca=room.lab.facts.tls_ca,
        ca_root=room.lab.facts.ca_root,
    )
    with (
        (room.folder / "caller.log").open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.system.caller"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as child,
    ):
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(asdict(orders)) + "\n")
            yield Caller(child)
        finally:
            child.kill()


class Chains:
    """The leaf keys behind x5us; each chain is fetched and checked once."""

    def __init__(self, orders: Orders) -> None:
        trusted = create_default_context(cafile=orders.https_ca)
        self._http = httpx.AsyncClient(verify=trusted, timeout=10.0)
        self._root = x509.load_pem_x509_certificate(Path(orders.ca_root).read_bytes())
        self._keys: dict[str, Task[ec.EllipticCurvePublicKey]] = {}

    async def key(self, x5u: str) -> ec.EllipticCurvePublicKey:
        """The key of the leaf at `x5u`. Raises AssertionError for a chain that is not good."""
        if x5u not in self._keys:
            self._keys[x5u] = asyncio.create_task(self._fetched(x5u))
        return await self._keys[x5u]

    async def _fetched(self, x5u: str) -> ec.EllipticCurvePublicKey:
        response = await self._http.get(x5u)
        assert response.status_code == 200, f"{x5u}: HTTP {response.status_code}"
        chain = x509.load_pem_x509_certificates(response.content)
        now = datetime.now(UTC)
        for certificate, issuer in zip(chain, [*chain[1:], self._root], strict=True):
            certificate.verify_directly_issued_by(issuer)
            assert certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
        key = chain[0].public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key


class Desk:
    """Makes the calls and counts what comes of them."""

    def __init__(self, orders: Orders) -> None:
        self._chains = Chains(orders)
        self._client = AsyncClient(
            [orders.target],
            tls=Tls(**orders.tls),
            profile=orders.profile,
            timeout=5.0,
            connections=orders.connections,
        )
        self._calls: set[Task[None]] = set()
        self._last = ""
        self._rate = 0.0
        self._paced: Task[None] | None = None
        self._anew()

    async def rate(self, number: float) -> None:
        self._rate = number
        if self._paced is None:
            self._paced = asyncio.create_task(self._pace())

    async def tally(self, _: float) -> str:
        """The tally as JSON; another one is begun."""
        tally, took, since = self._tally, self._took, self._since
        mine = set(self._calls)
        self._anew()
        if mine:
            await asyncio.wait(mine)
        took.sort()
        tally.seconds = time.monotonic() - since
        if took:
            tally.p50, tally.p99, tally.worst = (_share(took, share) for share in (0.5, 0.99, 1))
        return json.dumps(asdict(tally))

    async def last(self, _: float) -> str:
        return json.dumps(self._last)

    def _anew(self) -> None:
        self._tally, self._since = Tally(), time.monotonic()
        self._took: list[float] = []

    async def _pace(self) -> None:
        """Calls when they are due, also those that became due while this process was away."""
        due = time.monotonic()
        while True:
            now = time.monotonic()
            match self._rate:
                case math.inf:
                    due = now
                    for _ in range(SATURATED - len(self._calls)):
                        self._begin()
                case 0:
                    due = now
                case rate:
                    while due <= now:
                        self._begin()
                        due += 1 / rate
            await asyncio.sleep(min(max(due - now, 0.001), 0.02))

    def _begin(self) -> None:
        call = asyncio.create_task(self._call())
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self) -> None:
        tally, took = self._tally, self._took
        began = time.monotonic()
        try:
            identity = await self._signed(tally)
            took.append((time.monotonic() - began) * 1000)
            token = read_identity(identity)
            assert abs(token.claims["iat"] - time.time()) < 60
            verify_signature(token, await self._chains.key(token.x5u))
        except Exception as error:
            tally.failed += 1
            tally.why = [*tally.why, f"{type(error).__name__}: {error}"][:SHOWN]
            return
        tally.signed += 1
        self._last = identity
        tally.by_x5u[token.x5u] = tally.by_x5u.get(token.x5u, 0) + 1

    async def _signed(self, tally: Tally) -> str:
        """As the client's documentation has it: after Overloaded, the same call again."""
        for _ in range(PATIENCE):
            try:
                return str(await self._client.sign_shaken(ORIG, DEST, "A"))
            except Overloaded as error:
                tally.asked_again += 1
                await asyncio.sleep(max(error.retry_after, 0.01))
        return str(await self._client.sign_shaken(ORIG, DEST, "A"))


def _share(ordered: list[float], share: float) -> float:
    """Nearest rank; two digits are what a clock of microseconds can promise here."""
    return round(ordered[math.ceil(share * len(ordered)) - 1], 2)


async def main() -> None:
    lines = asyncio.StreamReader()
    reading = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: reading, sys.stdin)
    desk = Desk(Orders(**json.loads(await lines.readline())))
    verbs = {"rate": desk.rate, "tally": desk.tally, "last": desk.last}
    while line := (await lines.readline()).decode().split():
        answer = await verbs[line[0]](float(line[1]))
        if answer is not None:
            sys.stdout.write(f"{answer}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
