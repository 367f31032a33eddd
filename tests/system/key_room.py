"""A whole deployment: a token, a lab, kmsd.toml, and kmsd's own processes, each started and
ended by the test.

`kmsctl` runs inside the test's process, because a hundred interpreters take a minute to start;
`following` starts it as a program of its own, for what goes on while the test does other things.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import msgspec
from kmsapi.v1 import admin_pb2 as pb
from kmsd_client import AsyncClient, Client, Tls

from kmsd import ctl, settings
from kmsd.ctl import connection
from kmsd.hsm import Hsm, Inventory
from kmsd.lab import Lab
from kmsd.presence import Seen, seen
from tests.softhsm import make_token, pin_of
from tests.system.programs import free_port, program, until

ORIG, DEST = "12155550112", "12155550113"
IN_A_MOMENT = 0.5 / 86_400
"""Days: for a policy whose times are over at once."""

Table = dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """How a kmsctl ended. documents: what it printed with --output json, oldest first."""

    code: int
    documents: list[Table]
    errors: str

    @property
    def last(self) -> Table:
        return self.documents[-1]


@dataclass
class KeyRoom:
    """`lab` and the tables given here become kmsd.toml; nothing runs until it is started.

    profiles, issuers, authorities: each with what differs from a plain one, by its name. All
    issuers and authorities are the lab; the first ones are those of a plain profile.
    repository, hsm, store: settings over the usual ones. shared_token: of another room.
    kmsd: the program, or one that is kmsd in every other respect.
    """

    folder: Path
    lab: Lab
    profiles: Mapping[str, Table] = field(default_factory=lambda: {"acme": {}})
    issuers: Mapping[str, Table] = field(default_factory=lambda: {"lab-ca": {}})
    authorities: Mapping[str, Table] = field(default_factory=lambda: {"lab": {}})
    repository: Table = field(default_factory=dict)
    hsm: Table = field(default_factory=dict)
    store: Table = field(default_factory=dict)
    shared_token: settings.Hsm | None = None
    state: Path | None = None
    port: int = field(default_factory=free_port)
    kmsd: tuple[str, ...] = ("kmsd",)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = self.state or self.folder / "state"
        self.run = self.folder / "run"
        self._signers: dict[int, int] = {}
        self.token = self.shared_token or make_token(self.folder / "hsm")
        self.config = self.folder / "kmsd.toml"
        self.configure()

    def configure(self) -> None:
        """Writes kmsd.toml from what is set; processes read it when they start."""
        self.config.write_text(_toml(self._tables()))

    def keeper(self) -> AbstractContextManager[Popen[bytes]]:
        """A keeper that answers."""
        return self._keeper()

    @contextmanager
    def signer(self, index: int = 1) -> Iterator[Popen[bytes]]:
        """A signer, not waited for."""
        words = (*self.kmsd, "--config", str(self.config), "signer", "--index", str(index))
        with program(self.folder / f"signer-{index}.log", *words) as child:
            self._signers[index] = child.pid
            yield child

    @contextmanager
    def running(self, *, signers: int = 1) -> Iterator[Popen[bytes]]:
        """A keeper and signers that serve; yields the keeper's process."""
        with contextlib.ExitStack() as opened:
            for index in range(1, signers + 1):
                opened.enter_context(self.signer(index))
            keeper = opened.enter_context(self.keeper())
            for index in range(1, signers + 1):
                self.until_serving(index)
            yield keeper

    def log(self, name: str = "keeper") -> str:
        """Everything a process has logged."""
        return (self.folder / f"{name}.log").read_text()

    def kmsctl(self, *words: str) -> Ran:
        """One kmsctl run with --output json."""
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = ctl.main(["--config", str(self.config), "--output", "json", *words])
        return Ran(int(code), _documents(out.getvalue()), errors.getvalue())

    def kmsctl_for_people(self, *words: str) -> tuple[int, str, str]:
        """One kmsctl run as a program: exit code, standard output, standard error."""
        ended = subprocess.run(
            self._words(words), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        return ended.returncode, ended.stdout, ended.stderr

    @contextmanager
    def following(self, *words: str) -> Iterator["Following"]:
        """A kmsctl that is running (enroll or rotate), read step by step; ended in any case."""
        child = Popen(
            self._words(("--output", "json", *words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield Following(child)
        finally:
            child.terminate()
            child.communicate()

    def enrolled(self, profile: str = "acme") -> Table:
        """Enrolls it; the credential that is active then."""
        ran = self.kmsctl("enroll", profile)
        assert ran.code == 0, ran.errors
        credential: Table = ran.last["credential"]
        return credential

    def rotated(self, profile: str = "acme") -> Table:
        """Rotates it; the credential that is active then."""
        ran = self.kmsctl("rotate", profile)
        assert ran.code == 0, ran.errors
        credential: Table = ran.last["credential"]
        return credential

    def begun(self, profile: str = "acme", verb: str = "rotate") -> None:
        """Asks for a new credential of it, and does not wait for what comes of it."""
        with connection.admin(f"unix:{self.run}/keeper.sock") as admin:
            if verb == "rotate":
                call = admin.Rotate(pb.RotateRequest(profile=profile), timeout=10)
            else:
                call = admin.Enroll(pb.EnrollRequest(profile=profile), timeout=10)
            next(call)
            call.cancel()

    def trouble(self, profile: str = "acme") -> Table:
        """What stands in the way of the credential that is coming; {} when nothing does."""
        coming = self.profile(profile)["coming"]
        return (coming and coming["trouble"]) or {}

    def status(self) -> Table:
        """The status document."""
        return self.kmsctl("status").last

    def profile(self, name: str = "acme") -> Table:
        """A profile as kmsctl tells of it."""
        listed = self.kmsctl("profiles").last["profiles"]
        found: Table = next(one for one in listed if one["name"] == name)
        return found

    def credential(self, identifier: str) -> Table:
        """The document of one credential."""
        return self.kmsctl("credential", identifier).last

    def credentials(self, *words: str) -> list[Table]:
        """Credentials, newest first."""
        listed: list[Table] = self.kmsctl("credentials", *words).last["credentials"]
        return listed

    def state_of(self, identifier: str) -> str:
        """The name of a credential's state."""
        return str(self.credential(identifier)["credential"]["state"])

    def inventory(self) -> Inventory:
        """What is on the token, seen by a login of the test's own."""
        with Hsm.open(self.token, pin_of(self.token)) as hsm:
            return hsm.inventory()

    def client(self, profile: str = "acme") -> Client:
        """An STI-AS on threads."""
        return Client([self.target], tls=self.tls(), profile=profile, timeout=5.0)

    def async_client(self, profile: str = "acme") -> AsyncClient:
        """An STI-AS on asyncio."""
        return AsyncClient([self.target], tls=self.tls(), profile=profile, timeout=5.0)

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def tls(self, name: str = "as1") -> Tls:
        """What an STI-AS with the identity spiffe://lab/NAME shows."""
        files = self.lab.tls.client(name)
        return Tls(ca=files.ca, certificate=files.certificate, key=files.key)

    def sign(self, profile: str = "acme") -> str:
        """An Identity header for a call of `profile`, made by whatever signer answers."""
        with self.client(profile) as client:
            return str(client.sign_shaken(ORIG, DEST, "A"))

    def acknowledged(self, index: int = 1) -> Seen | None:
        """The last word of a signer."""
        said = seen(self.run)
        return next((one for one in said if one.acknowledgement.index == index), None)

    def until_serving(self, index: int = 1) -> None:
        """Waits until the signer last started has opened the HSM and follows the keyring."""

        def serving() -> bool:
            one = self.acknowledged(index)
            if one is None or one.acknowledgement.pid != self._signers[index]:
                return False
            return one.alive and not one.acknowledgement.trouble

        until(f"signer {index} serves", serving)

    @contextmanager
    def _keeper(self) -> Iterator[Popen[bytes]]:
        words = (*self.kmsd, "--config", str(self.config), "keeper")
        with program(self.folder / "keeper.log", *words) as keeper:

            def answers() -> bool:
                assert keeper.poll() is None, self.log()[-2000:]
                return self.kmsctl("profiles").code == 0

            until("the keeper answers", answers)
            yield keeper

    def _words(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "kmsd.ctl", "--config", str(self.config), *words]

    def _tables(self) -> Table:
        facts = self.lab.facts
        server, caller = self.lab.tls.server("signer"), self.lab.tls.client("as1")
        spcs = dict(zip(self.profiles, facts.spcs, strict=False))
        return {
            "state": str(self.state),
            "run": str(self.run),
            "hsm": _settings(self.token) | self.hsm,
            "store": self.store,
            "keeper": {"listen": f"unix:{self.run}/keeper.sock", "tick_seconds": 0.2},
            "signer": {"listen": [f"127.0.0.1:{self.port}"], "tls": _files(server)},
            "client": {"targets": [self.target], "tls": _files(caller)},
            "repository": {
                "url": f"file://{facts.cr_dir}",
                "public_url": facts.cr_url,
                "tls_ca": facts.tls_ca,
            }
            | self.repository,
            "authorities": {
                name: {
                    "url": facts.pa_url,
                    "root": facts.pa_root,
                    "user": facts.pa_user,
                    "password": facts.pa_password_file,
                    "tls_ca": facts.tls_ca,
                    "timeout": 10.0,
                }
                | given
                for name, given in self.authorities.items()
            },
            "issuers": {
                name: {
                    "directory": facts.ca_directory,
                    "tls_ca": facts.tls_ca,
                    "terms_of_service_agreed": True,
                    "timeout": 10.0,
                    "poll_limit": 20.0,
                }
                | given
                for name, given in self.issuers.items()
            },
            "profiles": {
                name: {
                    "spc": spcs.get(name, facts.spcs[0]),
                    "authority": next(iter(self.authorities)),
                    "issuers": [next(iter(self.issuers))],
                    "subject": {"country": "US", "organization": f"{name.title()} Telecom"},
                }
                | given
                for name, given in self.profiles.items()
            },
            "callers": [
                {
                    "id": "spiffe://lab/as1",
                    "profiles": ["*"],
                    "types": ["shaken", "base", "div", "rph", "rcd"],
                    "attest": "A",
                }
            ],
        }


class Following:
    """A kmsctl that tells of an enrollment while it goes on."""

    def __init__(self, child: "Popen[str]") -> None:
        self._child = child
        self.documents: list[Table] = []

    def step(self) -> Table:
        """The next document it prints."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line, f"kmsctl ended after {self.documents[-1:]}"
        self.documents.append(json.loads(line))
        return self.documents[-1]

    def until(self, member: str, value: str = "") -> Table:
        """The first document whose `reason`, or state of the credential, is `value`; without a
        value, the first that has a reason."""
        while True:
            step = self.step()
            told = step["reason"] if member == "reason" else step["credential"]["state"]
            if told == value if value else told:
                return step
            assert not step.get("done"), step

    def end(self) -> Ran:
        """How it ended, after everything it still had to say."""
        out, _ = self._child.communicate(timeout=60)
        self.documents += _documents(out)
        return Ran(self._child.returncode, self.documents, "")


def _documents(text: str) -> list[Table]:
    return [json.loads(line) for line in text.splitlines()]


def _files(files: Any) -> Table:
    return {name: str(getattr(files, name)) for name in ("certificate", "key", "ca")}


def _settings(hsm: settings.Hsm) -> Table:
    return {
        "module": hsm.module,
        "token": hsm.token,
        "pin": hsm.pin,
        "environment": hsm.environment,
    }


def _toml(value: Any) -> str:
    """A document from tables; a value is what JSON and TOML write alike, or a table."""
    if not isinstance(value, dict):
        raise TypeError(value)
    return "".join(f"{name} = {_inline(each)}\n" for name, each in value.items())


def _inline(value: Any) -> str:
    match value:
        case dict():
            pairs = ", ".join(f'"{name}" = {_inline(each)}' for name, each in value.items())
            return f"{{ {pairs} }}"
        case list():
            return f"[{', '.join(map(_inline, value))}]"
        case _:
            return msgspec.json.encode(value).decode()
