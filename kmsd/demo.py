"""`kmsd demo`: the whole main job on one machine, with nothing but real parts.

A throw-away SoftHSM token, the embedded lab (STI-PA, STI-CA and STI-CR on loopback HTTPS), the
same keeper and signers as in production, kmsctl, and the Python client over mutual TLS. Everything
is written into one folder and ended when the demo ends.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from kmsd_client import Client, SigningError, Tls
from rich.console import Console

from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.presence import Seen, seen

PROFILES = {"acme": "1234", "birch": "567A"}
CALLS = {"acme": ("+1 (201) 555-0101", "12025550102"), "birch": ("13035550103", "14045550104")}
SOFTHSM = Path(__file__).parents[1] / "softhsm" / "init-token"

CONFIG = """\
# The demo's kmsd.toml. A commented one for production is systemd/kmsd.toml.
state = "{folder}/state"
run = "{folder}/run"

{hsm}
[keeper]
listen = "unix:{folder}/run/keeper.sock"

[signer]
listen = ["127.0.0.1:{port}"]
tls = {{ certificate = "{tls}/signer.crt", key = "{tls}/signer.key", ca = "{tls_ca}" }}

[client]
targets = ["localhost:{port}"]
tls = {{ certificate = "{tls}/as1.crt", key = "{tls}/as1.key", ca = "{tls_ca}" }}

[repository]
url = "file://{cr_dir}"
public_url = "{cr_url}"
tls_ca = "{tls_ca}"

[authorities.lab]
url = "{pa_url}"
root = "{pa_root}"
user = "{pa_user}"
password = "{pa_password_file}"
tls_ca = "{tls_ca}"

[issuers.lab-ca]
directory = "{ca_directory}"
tls_ca = "{tls_ca}"
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


def main(folder: Path | None, *, once: bool) -> int:
    """Runs the demo in `folder` (default: a temporary one, removed at the end).

    once: end when everything was shown. Gives the exit status; 0 only when every step held.
    """
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as opened:
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="kmsd-demo-"))
                opened.callback(shutil.rmtree, folder, ignore_errors=True)
            _show(console, folder.resolve(), opened)
            if once:
                console.print("\n[bold green]The whole main job held.[/]")
                return 0
            _wait(console, folder)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        return 130 if once else 0
    except (KmsdError, SigningError, subprocess.CalledProcessError, OSError) as error:
        console.print(f"\n[bold red]The demo failed:[/] {error}", soft_wrap=True)
        return 1
    return 0


def _show(console: Console, folder: Path, opened: ExitStack) -> None:
    """Everything from an empty HSM to verified PASSporTs."""

    def step(text: str) -> None:
        console.print(f"\n[bold]{text}[/]")

    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"kmsd demo in {folder}", markup=False, soft_wrap=True)
    step("1. A SoftHSM token, and the lab: STI-PA, STI-CA and STI-CR over HTTPS")
    hsm = _token(folder)
    lab = opened.enter_context(_lab(folder))
    console.print(f"   STI-PA {lab['pa_url']}\n   STI-CA {lab['ca_directory']}", soft_wrap=True)
    console.print(f"   STI-CR {lab['cr_url']}", soft_wrap=True)
    step("2. One keeper, and one signer per core")
    config, port = _configure(folder, lab, hsm)
    opened.enter_context(_processes(folder, config))
    for one in seen(folder / "run"):
        console.print(f"   signer {one.acknowledgement.index}: pid {one.acknowledgement.pid}")
    for name, spc in PROFILES.items():
        step(f"3. Enroll profile {name} (SPC {spc}): $ kmsctl enroll {name}")
        _kmsctl(config, "enroll", name)
    tls = folder / "lab" / "tls"
    with Client(
        [f"localhost:{port}"],
        tls=Tls(ca=lab["tls_ca"], certificate=tls / "as1.crt", key=tls / "as1.key"),
        timeout=5.0,
    ) as client:
        for name, (orig, dest) in CALLS.items():
            step(f"4. Sign a call of {name} over mutual TLS, then verify it as an STI-VS would")
            identity = str(client.sign_shaken(orig, dest, "A", profile=name))
            console.print("Identity: " + identity, markup=False, soft_wrap=True)
            (folder / f"identity-{name}.txt").write_text(identity + "\n")
            _kmsctl(config, "verify", identity)
    step("5. The key room: $ kmsctl status")
    _kmsctl(config, "status")
    _hints(console, config, port, tls, lab["tls_ca"])


def _hints(console: Console, config: Path, port: int, tls: Path, ca: str) -> None:
    bin_ = Path(sys.executable).parent
    lines = [
        f"export KMSD_CONFIG={config} PATH={bin_}:$PATH",
        "kmsctl profiles",
        "kmsctl rotate acme",
        "kmsctl credentials",
        "kmsctl sign --profile birch --orig 13035550103 --dest 14045550104 | kmsctl verify -",
        "kmsd check",
        f"grpcurl -cacert {ca} -cert {tls}/as1.crt -key {tls}/as1.key"
        ' -d \'{"profile":"acme","passports":[{"orig_tn":"12015550101",'
        '"dest_tn":["12025550102"],"shaken":{"attest":"ATTESTATION_A"}}]}\''
        f" localhost:{port} kmsapi.v1.Signing/Sign",
    ]
    console.print("\n[bold]Try next, in another terminal:[/]")
    for line in lines:
        console.print("  " + line, markup=False, soft_wrap=True)


def _token(folder: Path) -> str:
    """Makes the token; gives the [hsm] table for kmsd.toml."""
    if not SOFTHSM.exists():
        raise Misconfigured(
            "DEMO_INCOMPLETE",
            f"There is no {SOFTHSM}.",
            next_step="Run the demo from a checkout of the source: make demo",
        )
    made = subprocess.run(  # noqa: S603  our own script
        [SOFTHSM, folder / "hsm"],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return made.stdout


@contextmanager
def _lab(folder: Path) -> Iterator[dict[str, str]]:
    """The lab as its own process; gives what it wrote into lab.json."""
    words = ["--folder", str(folder / "lab"), "--cr-port", "8443"]
    for spc in PROFILES.values():
        words += ["--spc", spc]
    words += ["--tls-server", "signer", "--tls-client", "as1"]
    with _child(folder, "lab", [sys.executable, "-m", "kmsd.lab", *words], subprocess.PIPE) as lab:
        assert lab.stdout is not None  # noqa: S101  a pipe was asked for
        ready = lab.stdout.readline().decode().strip()
        if not ready:
            raise Unavailable("LAB_NOT_READY", f"The lab did not start; see {folder}/lab.log.")
        facts = msgspec.json.decode(Path(ready).read_bytes(), type=dict[str, object])
        yield {name: str(value) for name, value in facts.items()}


def _configure(folder: Path, lab: dict[str, str], hsm: str) -> tuple[Path, int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    profiles = "".join(
        PROFILE.format(name=name, spc=spc, title=name.title()) for name, spc in PROFILES.items()
    )
    config = folder / "kmsd.toml"
    config.write_text(
        CONFIG.format(
            folder=folder,
            hsm=hsm,
            port=port,
            tls=folder / "lab" / "tls",
            profiles=profiles,
            **lab,
        )
    )
    return config, port


@contextmanager
def _processes(folder: Path, config: Path) -> Iterator[None]:
    """`kmsd run`, until the keeper answers and every signer serves."""
    command = [sys.executable, "-m", "kmsd", "--config", str(config), "run"]
    with _child(folder, "kmsd", command, subprocess.DEVNULL) as child:
        wanted = os.cpu_count() or 1
        deadline = time.monotonic() + 30
        while True:
            if sum(_serves(one) for one in seen(folder / "run")) == wanted:
                break
            if child.poll() is not None or time.monotonic() > deadline:
                raise Unavailable("DEMO_NOT_READY", f"kmsd did not start; see {folder}/kmsd.log.")
            time.sleep(0.1)
        yield


def _serves(one: Seen) -> bool:
    return one.alive and not one.acknowledgement.trouble


@contextmanager
def _child(
    folder: Path, name: str, command: list[str], stdout: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the demo; its log is `<folder>/<name>.log`; ended in any case."""
    with (folder / f"{name}.log").open("wb") as log:
        child = subprocess.Popen(  # noqa: S603  our own program
            command,
            stdout=stdout,
            stderr=log,
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the demo, which ends its children in order
        )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _kmsctl(config: Path, *words: str) -> None:
    subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-m", "kmsd.ctl", "--config", str(config), *words], check=True
    )


def _wait(console: Console, folder: Path) -> None:
    console.print(f"\nRunning (logs in {folder}). Ctrl-C stops everything.", soft_wrap=True)
    while True:
        time.sleep(3600)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
