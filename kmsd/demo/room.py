"""What the demo's key room is made of: a SoftHSM token, the lab, kmsd.toml, and `kmsd run`."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from kmsd.demo.children import Children
from kmsd.errors import Misconfigured, Unavailable
from kmsd.presence import seen

PROFILES = {"acme": "1234", "birch": "567A"}
CR_PORT = 8443
"""Verifiers fetch chains from port 443 or 8443."""
SOFTHSM = Path(__file__).parents[2] / "softhsm" / "init-token"
LONGEST_FOLDER = 85
"""Bytes: the path of the keeper's socket, which is below it, has at most 107."""
READY_WITHIN = 30.0

CONFIG = """\
# The demo's kmsd.toml. Relative paths are relative to this file; systemd/kmsd.toml, in the
# source of kmsd, explains every setting.
state = "state"
run = "run"

{hsm}
[signer]
listen = ["{target}"]
tls = {{ certificate = "lab/tls/signer.crt", key = "lab/tls/signer.key", ca = "lab/tls/ca.crt" }}

[client]
targets = ["{target}"]
tls = {{ certificate = "lab/tls/as1.crt", key = "lab/tls/as1.key", ca = "lab/tls/ca.crt" }}

[repository]
public_url = "{lab.cr_url}"
tls_ca = "lab/tls/ca.crt"

[authorities.lab]
url = "{lab.pa_url}"
root = "lab/pki/pa-root.crt"
user = "{lab.pa_user}"
password = "lab/pa-password"
tls_ca = "lab/tls/ca.crt"

[issuers.lab-ca]
directory = "{lab.ca_directory}"
tls_ca = "lab/tls/ca.crt"
terms_of_service_agreed = true
{profiles}
[[callers]]
id = "spiffe://lab/as1"
profiles = ["*"]
types = ["shaken", "base", "div", "rph", "rcd"]
attest = "A"
"""

PROFILE = """
[profiles.{name}]
spc = "{spc}"
authority = "lab"
issuers = ["lab-ca"]
subject = {{ country = "US", organization = "{title} Telecom" }}
"""


class Lab(msgspec.Struct, frozen=True):
    """What kmsd.toml needs of lab.json."""

    pa_url: str
    pa_user: str
    ca_directory: str
    cr_url: str


def occupy(folder: Path) -> None:
    """Makes the folder, or takes an empty one. Raises Misconfigured when it will not do."""
    if not SOFTHSM.exists():
        raise Misconfigured(
            "DEMO_INCOMPLETE",
            f"There is no {SOFTHSM}.",
            next_step="Run the demo from a checkout of the source: make demo",
        )
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        raise Misconfigured(
            "DEMO_FOLDER_UNFIT",
            f"The path {folder} is too long for the sockets below it.",
            next_step=f"Name a folder with at most {LONGEST_FOLDER} bytes.",
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise Misconfigured(
            "DEMO_FOLDER_UNFIT",
            f"The folder {folder} is not empty.",
            next_step="Name a new one: the demo begins with an empty HSM.",
        )


def make_token(folder: Path, module: Path | None) -> str:
    """The token, and the [hsm] table of kmsd.toml for it. module: of SoftHSM 2; None: where it
    usually is. Raises Misconfigured."""
    made = subprocess.run(  # noqa: S603  our own script
        [SOFTHSM, folder / "hsm", "kmsd", *([module] if module else [])],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise Misconfigured("DEMO_WITHOUT_HSM", made.stderr.strip().removeprefix(f"{SOFTHSM}: "))
    return made.stdout


def start_lab(folder: Path, children: Children) -> Lab:
    """The lab as its own process; the STI-CR serves what the keeper puts into its default place.

    Raises Unavailable when it does not start.
    """
    words = ["--folder", str(folder / "lab"), "--cr-dir", str(folder / "state" / "repository")]
    words += ["--cr-port", str(CR_PORT), "--tls-server", "signer", "--tls-client", "as1"]
    for spc in PROFILES.values():
        words += ["--spc", spc]
    lab = children.start("lab", [sys.executable, "-m", "kmsd.lab", *words])
    assert lab.stdout is not None  # noqa: S101  it is a pipe
    ready = lab.stdout.readline().decode().strip()
    if not ready:
        raise Unavailable("DEMO_NOT_READY", "The lab did not start.")
    return msgspec.json.decode(Path(ready).read_bytes(), type=Lab)


def configure(folder: Path, lab: Lab, hsm: str) -> tuple[Path, str]:
    """Writes kmsd.toml: its path, and where the signers will listen."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        target = f"localhost:{free.getsockname()[1]}"
    profiles = "".join(
        PROFILE.format(name=name, spc=spc, title=name.title()) for name, spc in PROFILES.items()
    )
    config = folder / "kmsd.toml"
    config.write_text(CONFIG.format(hsm=hsm, target=target, lab=lab, profiles=profiles))
    return config, target


def start_kmsd(folder: Path, config: Path, children: Children) -> None:
    """`kmsd run`, until the keeper listens and every signer serves. Raises Unavailable."""
    children.start("kmsd", [sys.executable, "-m", "kmsd", "--config", str(config), "run"])
    deadline = time.monotonic() + READY_WITHIN
    while not _ready(folder):
        children.expect_all()
        if time.monotonic() > deadline:
            raise Unavailable("DEMO_NOT_READY", f"kmsd is not ready after {READY_WITHIN:.0f} s.")
        time.sleep(0.1)


def _ready(folder: Path) -> bool:
    signers = [one for one in seen(folder / "run") if one.alive]
    serving = [one for one in signers if not one.acknowledgement.trouble]
    return len(serving) == os.cpu_count() and (folder / "run" / "keeper.sock").exists()
