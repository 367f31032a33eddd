"""`kmsd demo` as a newcomer meets it: a program that ends, tidily, whatever happens to it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.system.programs import until


@contextmanager
def demo(elsewhere: Path, *words: str, **how: int) -> Iterator["Popen[str]"]:
    """`kmsd demo --once WORDS`, with everything outside its folder sent to `elsewhere`."""
    elsewhere.mkdir()
    child = Popen(
        [sys.executable, "-m", "kmsd", "demo", "--once", *words],
        cwd=elsewhere,
        env=os.environ | {"HOME": str(elsewhere), "TMPDIR": str(elsewhere), "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        child.terminate()
        child.communicate()


def processes_of(folder: Path) -> dict[int, str]:
    """Processes that name the folder in their arguments."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in words:
                found[int(entry.parent.name)] = words
    return found


@pytest.fixture
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short path: below it are sockets."""
    return tmp_path_factory.mktemp("d")


def begun(child: "Popen[str]", elsewhere: Path) -> Path:
    """The temporary folder of a demo, as soon as `kmsd run` has begun to start processes."""

    def running() -> bool:
        assert child.poll() is None, child.communicate()
        return any(log.stat().st_size for log in elsewhere.glob("*/kmsd.log"))

    until("the demo's processes run", running, 30)
    (folder,) = elsewhere.glob("kmsd-demo-*")
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the words of a demo that went well, while the STI-CR's port was taken."""
    top = tmp_path_factory.mktemp("demo")
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with taken:
        with contextlib.suppress(OSError):  # then somebody else has it, which is as good
            taken.bind(("127.0.0.1", 8443))
            taken.listen()
        with demo(top / "elsewhere", "--folder", str(top / "a demo")) as child:
            out, _ = child.communicate(timeout=100)
        assert child.returncode == 0, out
        assert list((top / "elsewhere").iterdir()) == []
        assert processes_of(top) == {}
    return top / "a demo", out


def test_the_demo_leads_from_an_empty_hsm_to_calls_that_independent_judges_believe(
    shown: tuple[Path, str], tmp_path: Path
) -> None:
    folder, out = shown
    identities = re.findall(r"^Identity: (.*)$", out, flags=re.M)
    assert len(identities) == 2
    for identity in identities:
        url = re.search(r"info=<https://localhost:\d+/cr/(\w+\.pem)>", identity)
        assert url, identity
        chain = folder / "state" / "repository" / url[1]
        root = folder / "lab" / "pki" / "ca-root.crt"
        words: list[str | Path] = ["-x509_strict", "-CAfile", root, "-untrusted", chain, chain]
        verified = subprocess.run(["openssl", "verify", *words], capture_output=True, text=True)
        assert verified.stdout == f"{chain}: OK\n", verified.stderr
        leaf = x509.load_pem_x509_certificates(chain.read_bytes())[0]
        key = leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pem").write_bytes(key)
        (tmp_path / "identity").write_text(identity)
        words = ["-fidentity", tmp_path / "identity", "-fpubkey", tmp_path / "key.pem"]
        believed = subprocess.run(
            ["secsipidx", "-check", *words, "-expire", "120"], capture_output=True, text=True
        )
        assert (believed.returncode, believed.stdout) == (0, "ok\n"), believed.stderr


def test_the_steps_are_numbered_and_fit_a_terminal(shown: tuple[Path, str]) -> None:
    _, out = shown
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", out, flags=re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(len(line) <= 80 for line in re.findall(r"^\d+\. .*$", out, flags=re.M))
    assert "\x1b" not in out
    assert out.endswith("Every step held; nothing is left running.\n")


def test_a_taken_port_is_told_and_does_no_harm(shown: tuple[Path, str]) -> None:
    assert "port 8443 is taken" in shown[1]


def test_a_folder_that_is_in_use_is_left_alone(shown: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = shown
    before = sorted(folder.rglob("*"))
    with demo(tmp_path / "elsewhere", "--folder", str(folder)) as child:
        out, _ = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "is not empty. Name a new one" in out
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("victim", "name"), [("kmsd.lab", "lab"), ("kmsd.toml run", "kmsd")])
def test_a_demo_that_loses_a_part_says_so_and_keeps_the_logs(
    top: Path, victim: str, name: str
) -> None:
    with demo(top / "elsewhere") as child:
        folder = begun(child, top / "elsewhere")
        # A child that is just being spawned still has its parent's arguments, and a higher number.
        process = min(number for number, words in processes_of(folder).items() if victim in words)
        os.kill(process, signal.SIGKILL)
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 1
    assert f"The demo failed: {name} was killed (SIGKILL)." in out
    assert "The end of " in out
    assert out.endswith(f"Everything is kept in {folder}; nothing is left running.\n")
    assert (folder / "kmsd.log").exists()
    assert processes_of(top) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing(top: Path, number: signal.Signals) -> None:
    with demo(top / "elsewhere") as child:
        begun(child, top / "elsewhere")
        child.send_signal(number)
        child.send_signal(number)
        out, _ = child.communicate(timeout=30)
    assert child.returncode == 130
    assert out.endswith("Stopped; nothing is left running.\n")
    assert processes_of(top) == {}
    assert list((top / "elsewhere").iterdir()) == []
