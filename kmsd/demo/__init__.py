"""`kmsd demo`: the whole main job on one machine, with nothing but real parts.

A throw-away SoftHSM token, the embedded lab (STI-PA, STI-CA and STI-CR on loopback HTTPS), the
same keeper and signers as in production, kmsctl, and the Python client over mutual TLS. Everything
is written into one folder and ended when the demo ends. Here is the story; `children` starts and
ends the processes, `room` makes the token and writes kmsd.toml.
"""

import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from kmsd_client import Client, SigningError, Tls
from rich.console import Console
from rich.text import Text

from kmsd.demo import room
from kmsd.demo.children import Children
from kmsd.demo.room import PROFILES
from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.presence import seen

CALLS = {"acme": ("+1 (201) 555-0101", "12025550102"), "birch": ("13035550103", "14045550104")}
LOG_LINES = 10
"""Of a log that tells why the demo failed."""


def main(folder: Path | None, *, once: bool, module: Path | None = None) -> int:
    """Runs the demo in `folder`: a new or empty one, which stays; None: a temporary one, which is
    removed at the end unless the demo failed.

    module: of SoftHSM 2; None: where it usually is. once: end when everything was shown.
    Gives the exit status: 0 when every step held (without `once` also after Ctrl-C), 1 when one
    did not, 130 when `once` was interrupted.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    temporary = folder is None
    place = Path(tempfile.mkdtemp(prefix="kmsd-demo-")) if folder is None else folder.resolve()
    status = _run(console, place, module, once=once)
    if temporary and status != 1:
        shutil.rmtree(place, ignore_errors=True)
    return status


def _run(console: Console, folder: Path, module: Path | None, *, once: bool) -> int:
    children = Children(folder)
    at_terminal = sys.stdout.isatty()
    try:
        with ExitStack() as opened:
            opened.callback(children.end)
            opened.callback(_deaf)  # a second Ctrl-C must not keep children from being ended
            target = _show(console, folder, module, children)
            if not once:
                _hints(console, folder, target)
                console.print(f"\nEverything runs (logs in {folder}). Ctrl-C ends it.")
                # A closed terminal need not send SIGHUP to us: only to what it has started.
                while sys.stdout.isatty() == at_terminal:
                    children.expect_all()
                    time.sleep(0.3)
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be what went away
            console.print("\nStopped; nothing is left running.")
        return 130 if once else 0
    except (KmsdError, SigningError, OSError) as error:
        if sys.stdout.isatty() != at_terminal:
            return 130  # nobody is there any more
        with suppress(OSError):
            _explain(console, folder, children, error)
        return 1
    console.print("\nEvery step held; nothing is left running.", style="bold green")
    return 0


def _show(console: Console, folder: Path, module: Path | None, children: Children) -> str:
    """Everything from an empty HSM to verified PASSporTs; gives where the signers listen."""
    step = _numbered(console)
    console.print(f"kmsd demo: from an empty HSM to verified calls, in {folder}")
    room.occupy(folder)
    step("An HSM: a SoftHSM token of its own, initialised with a random PIN")
    hsm = room.make_token(folder, module)
    step("The lab: an STI-PA, an STI-CA and an STI-CR on loopback HTTPS")
    lab = room.start_lab(folder, children)
    console.print(f"   STI-PA {lab.pa_url}\n   STI-CA {lab.ca_directory}\n   STI-CR {lab.cr_url}")
    if f":{room.CR_PORT}/" not in lab.cr_url:
        console.print(
            f"   (port {room.CR_PORT} is taken on this machine; any other one will do here)"
        )
    step("The key room: one keeper, and one signer per core")
    config, target = room.configure(folder, lab, hsm)
    room.start_kmsd(folder, config, children)
    signers = [one.acknowledgement for one in seen(folder / "run") if one.alive]
    console.print("   signers " + ", ".join(f"#{one.index} (pid {one.pid})" for one in signers))
    for name, spc in PROFILES.items():
        step(f"{name} (SPC {spc}) gets its first key and certificate: $ kmsctl enroll {name}")
        _kmsctl(children, config, "enroll", name)
    tls = folder / "lab" / "tls"
    with Client(
        [target],
        tls=Tls(ca=tls / "ca.crt", certificate=tls / "as1.crt", key=tls / "as1.key"),
        timeout=5.0,
    ) as client:
        for name, (orig, dest) in CALLS.items():
            step(f"A call of {name} is signed over mutual TLS, and verified as an STI-VS would")
            identity = str(client.sign_shaken(orig, dest, "A", profile=name))
            console.print("Identity: " + identity)
            if name == next(iter(CALLS)):
                _kmsctl(children, config, "verify", identity)
            else:
                _kmsctl(children, config, "verify", identity, quiet=True)
                console.print("   verifies in the same way")
    step("The key room at a glance: $ kmsctl status")
    _kmsctl(children, config, "status")
    return target


def _numbered(console: Console) -> Callable[[str], None]:
    number = 0

    def step(text: str) -> None:
        nonlocal number
        number += 1
        console.print(f"\n{number}. {text}", style="bold")

    return step


def _hints(console: Console, folder: Path, target: str) -> None:
    bin_ = Path(sys.executable).parent
    console.print("\nTry next, in another terminal:", style="bold")
    console.print(f"""\
  cd {shlex.quote(str(folder))}
  export KMSD_CONFIG=$PWD/kmsd.toml PATH={shlex.quote(str(bin_))}:$PATH
  kmsctl profiles
  kmsctl rotate acme        # a new key, certificate and URL, without a gap
  kmsctl credentials
  kmsctl sign --profile birch --orig 13035550103 --dest 14045550104 | kmsctl verify -
  kmsd check
  grpcurl -cacert lab/tls/ca.crt -cert lab/tls/as1.crt -key lab/tls/as1.key \\
    -d '{{"profile": "acme", "passports": [{{"orig_tn": "12015550101",
         "dest_tn": ["12025550102"], "shaken": {{"attest": "ATTESTATION_A"}}}}]}}' \\
    {target} kmsapi.v1.Signing/Sign""")


def _explain(console: Console, folder: Path, children: Children, error: Exception) -> None:
    """What failed, the end of the log that tells why, and where the rest is."""
    console.print(Text.assemble(("\nThe demo failed: ", "bold red"), str(error)))
    if isinstance(error, Misconfigured):
        with suppress(OSError):
            folder.rmdir()  # nothing was made yet, so there is nothing to read
        return
    for name, lines in children.last_words(LOG_LINES):
        console.print(f"\nThe end of {folder}/{name}.log:", style="bold")
        console.print("\n".join(f"  {line}" for line in lines))
    console.print(f"\nEverything is kept in {folder}; nothing is left running.")


def _kmsctl(children: Children, config: Path, *words: str, quiet: bool = False) -> None:
    """Runs it as a program of its own, as an operator would. Raises Unavailable."""
    command = [sys.executable, "-m", "kmsd.ctl", "--config", str(config), *words]
    status = children.run(command, quiet=quiet)
    if status:
        raise Unavailable("DEMO_STEP_FAILED", f"kmsctl {words[0]} ended with exit status {status}.")


def _interrupt(*_: object) -> None:
    _deaf()
    raise KeyboardInterrupt


def _deaf() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
