"""A signing host of which only the signer runs: a real token, real mutual TLS, and a keyring
written by the test in the keeper's place.
"""

import datetime
import hashlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from msgspec.structs import replace

from kmsd import settings
from kmsd.hsm import Hsm, new_key_id
from kmsd.keyring import KeyringWriter
from kmsd.lab import TlsAuthority, TlsFiles
from kmsd.model import BirthRecord
from kmsd.presence import Seen, seen
from kmsd.ring import Entry
from tests.shim import SlowHsm
from tests.softhsm import make_token, pin_of
from tests.system.programs import free_port, program, until

DAY = 86_400

CONFIG = """\
state = "{folder}/state"
run = "{folder}/run"
keyring = "{folder}/keyring"
hsm = {hsm}

[signer]
listen = ["127.0.0.1:{port}"]
{security}

[repository]
url = "file://{folder}/cr"
public_url = "https://cr.example.org/"

[authorities.pa]
url = "https://pa.example.org"
root = "{folder}/root.pem"
token_file = "{folder}/spc-token"

[issuers.ca]
directory = "https://ca.example.org/directory"

{profiles}
[[callers]]
id = "{first}"
profiles = ["*"]
types = ["shaken", "base", "div", "rph", "rcd"]
attest = "A"

[[callers]]
id = "spiffe://lab/as2"
profiles = ["acme"]
attest = "B"
"""

PLAINTEXT = "plaintext = true"

PROFILE = """\
[profiles.{name}]
spc = "1234"
authority = "pa"
issuers = ["ca"]
"""


@dataclass
class SigningHost:
    """Make keys with `key`, put them into the keyring with `activate`, start `signer`s.

    profiles: their names. plaintext: no TLS, and whoever calls may do what as1 may otherwise.
    threads: HSM sessions of each signer. delay: seconds that a signature lasts at least, when
    the HSM is to be a slow one. pin: what kmsd.toml says of it, when not the file it is in.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    profiles: Sequence[str] = ("acme",)
    plaintext: bool = False
    threads: int = 1
    delay: float | None = None
    pin: str = ""

    def __post_init__(self) -> None:
        self.tls = TlsAuthority(self.folder / "tls", datetime.datetime.now(datetime.UTC))
        self.hsm = make_token(self.folder / "hsm")
        self.slow = None if self.delay is None else SlowHsm(self.folder, self.hsm, self.delay)
        opened = self.slow.settings if self.slow else self.hsm
        self.config = self.folder / "kmsd.toml"
        self.config.write_text(
            CONFIG.format(
                folder=self.folder,
                hsm=_toml(replace(opened, pin=self.pin or opened.pin), self.threads),
                port=self.port,
                security=PLAINTEXT if self.plaintext else _tls(self.tls.server("signer")),
                profiles="\n".join(PROFILE.format(name=name) for name in self.profiles),
                first="plaintext" if self.plaintext else "spiffe://lab/as1",
            )
        )
        self.keyring = KeyringWriter(self.folder / "keyring")

    def caller(self, name: str) -> TlsFiles:
        """The certificate of an STI-AS with the identity spiffe://lab/NAME."""
        return self.tls.client(name)

    def key(self) -> BirthRecord:
        """A new key in the token."""
        with Hsm.open(self.hsm, pin_of(self.hsm)) as hsm:
            return hsm.generate(new_key_id(), "test", int(time.time()))

    def entry(self, birth: BirthRecord, profile: str = "acme", number: int = 1) -> Entry:
        """A keyring entry for a key; its x5u names the key's number."""
        return Entry(
            profile=profile,
            spc="1234",
            credential=f"{number:016x}",
            key_id=birth.key_id,
            spki_sha256=hashlib.sha256(birth.public_key).hexdigest(),
            x5u=f"https://cr.example.org/{number:016x}.pem",
            not_before=int(time.time()) - 60,
            not_after=int(time.time()) + DAY,
        )

    def activate(self, *entries: Entry) -> None:
        """Writes the next epoch, as the keeper does."""
        self.keyring.switch(self.keyring.epoch + 1, entries)

    def signer(self, index: int = 1) -> AbstractContextManager[Popen[bytes]]:
        """A signer process."""
        words = ("kmsd", "--config", str(self.config), "signer", "--index", str(index))
        return program(self.folder / f"signer-{index}.log", *words)

    def log(self, index: int = 1) -> str:
        """Everything a signer has logged."""
        return (self.folder / f"signer-{index}.log").read_text()

    def acknowledged(self, index: int = 1) -> Seen | None:
        """The signer's last word."""
        words = seen(self.folder / "run")
        return next((one for one in words if one.acknowledgement.index == index), None)

    def until_serving(self, index: int = 1) -> None:
        """Waits until the signer follows the newest epoch without trouble."""

        def serving() -> bool:
            one = self.acknowledged(index)
            if one is None or not one.alive:
                return False
            said = one.acknowledgement
            return said.epoch == self.keyring.epoch and not said.trouble

        until(f"signer {index} serves", serving)


def _tls(files: TlsFiles) -> str:
    return (
        f'tls = {{ certificate = "{files.certificate}", key = "{files.key}", ca = "{files.ca}" }}'
    )


def _toml(hsm: settings.Hsm, threads: int) -> str:
    pairs = ", ".join(f'{name} = "{value}"' for name, value in hsm.environment.items())
    texts = ", ".join(f'{name} = "{getattr(hsm, name)}"' for name in ("module", "token", "pin"))
    return f"{{ {texts}, threads = {threads}, environment = {{ {pairs} }} }}"
