"""What is measured: signers on a token of their own, an echo, secsipidx. Made and ended here."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kmsd import settings
from kmsd.ring import Entry
from tests.bench.crew import ROOT, Crew, crew
from tests.bench.figures import Setup
from tests.bench.proc import connections, peak_mib
from tests.system.programs import free_port, program, until
from tests.system.signing_host import DAY, SigningHost

CONNECTIONS: Final = 8
"""Of all load processes together."""


@dataclass(frozen=True)
class Server:
    """Processes that answer on one port."""

    port: int
    pids: Sequence[int]
    tls: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ("acme",)

    def peak_mib(self) -> float:
        """Peak memory of the largest process."""
        return peak_mib(self.pids)

    def crew(self, stack: ExitStack, kind: str, at_each: int = 0) -> Crew:
        """One load process a core, connected to this. at_each: connections, if not the usual."""
        host = "localhost" if self.tls else "127.0.0.1"
        setup = Setup(
            kind=kind,
            target=f"{host}:{self.port}",
            tls=self.tls,
            profiles=self.profiles,
            connections=at_each or max(1, CONNECTIONS // cores()),
        )
        return stack.enter_context(crew(setup, cores()))

    def balanced(self, made: Crew, attempts: int = 40) -> Crew:
        """Has a crew connect anew until every process has as many connections, give or take one.

        The kernel draws lots among the processes that share a port, and eight are too few for
        lots to be fair. Raw load is about what processes can do; `kmsd_client` takes its chance.
        """
        for _ in range(attempts):
            counts = [connections(pid, self.port) for pid in self.pids]
            if max(counts) - min(counts) <= 1:
                break
            made.reconnect()
        return made


def cores() -> int:
    """How many cores there are for the bench: `taskset` gives it fewer."""
    return len(os.sched_getaffinity(0))


def profile_names(count: int) -> tuple[str, ...]:
    """The profile of every test, and more."""
    return ("acme", *(f"p{number}" for number in range(1, count)))


def host(
    folder: Path,
    *,
    profiles: int = 1,
    keys: int = 1,
    tls: bool = False,
    threads: int = 1,
    delay: float | None = None,
) -> SigningHost:
    """A host of `profiles` profiles that share `keys` keys, in its keyring; nothing runs yet."""
    folder.mkdir()
    made = SigningHost(
        folder,
        profiles=profile_names(profiles),
        plaintext=not tls,
        threads=threads,
        delay=delay,
    )
    pairs = new_keys(made.hsm, keys)
    entries = [
        _entry(name, number, *pairs[number % keys])
        for number, name in enumerate(profile_names(profiles))
    ]
    made.activate(*entries)
    return made


def new_keys(hsm: settings.Hsm, count: int) -> list[tuple[str, str]]:
    """Makes keys on a token: CKA_ID and SHA-256 of the public key of each, hex."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.keys", str(count)],
        input=msgspec.json.encode(hsm),
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
    )
    return msgspec.json.decode(done.stdout, type=list[tuple[str, str]])


def signers(stack: ExitStack, at: SigningHost, count: int = 0) -> Server:
    """Starts signers on a host, one a core if not said otherwise; waits until they serve."""
    count = count or cores()
    running = [stack.enter_context(at.signer(index)) for index in range(1, count + 1)]
    for index in range(1, count + 1):
        at.until_serving(index)
    return Server(at.port, [one.pid for one in running], _tls(at), tuple(at.profiles))


def echo(stack: ExitStack, folder: Path) -> Server:
    """Starts an echo, one process a core."""
    port = free_port()
    running = [
        stack.enter_context(program(folder / "echo.log", "tests.bench.echo", str(port)))
        for _ in range(cores())
    ]
    return Server(port, [one.pid for one in running])


def secsipidx(stack: ExitStack, folder: Path) -> Server | None:
    """Starts secsipidx with a software key; None where it is not installed."""
    if shutil.which("secsipidx") is None:
        return None
    key = folder / "secsipidx.pem"
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    key.write_bytes(pem)
    return stack.enter_context(_secsipidx(key))


def key_of(at: SigningHost) -> tuple[str, str, str, str]:
    """Module, token label, path of the PIN and CKA_ID of a host's first key: for a bare loop."""
    entry = next(iter(at.keyring.entries.values()))
    return at.hsm.module, at.hsm.token, at.hsm.pin, entry.key_id


@contextmanager
def _secsipidx(key: Path) -> Iterator[Server]:
    port = free_port()
    words = ("secsipidx", "-http-srv", f"127.0.0.1:{port}", "-fprvkey", str(key))
    child = subprocess.Popen(  # it tells its standard output of every request
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until("secsipidx listens", lambda: _listens(child.pid, port))
        yield Server(port, [child.pid])
    finally:
        child.terminate()
        child.wait(10)


def _listens(pid: int, port: int) -> bool:
    local = f":{port:04X}"
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(local) and line.split()[3] == "0A" for line in lines)


def _tls(at: SigningHost) -> tuple[str, ...]:
    if at.plaintext:
        return ()
    files = at.caller("as1")
    return str(files.ca), str(files.certificate), str(files.key)


def _entry(profile: str, number: int, key_id: str, spki_sha256: str) -> Entry:
    now = int(time.time())
    return Entry(
        profile=profile,
        spc="1234",
        credential=f"{number + 1:016x}",
        key_id=key_id,
        spki_sha256=spki_sha256,
        x5u=f"https://cr.example.org/{number + 1:016x}.pem",
        not_before=now - 60,
        not_after=now + DAY,
    )
