"""The systemd units, judged by systemd."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = ("kmsd-keeper.service", "kmsd-signer@.service", "kmsd-repository.service")
PROGRAM = Path(sys.executable).parent / "kmsd"


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for name in (*SERVICES, "kmsd.target"):
        text = (UNITS / name).read_text().replace("/opt/kmsd/bin/kmsd", str(PROGRAM))
        (tmp_path / name).write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
    assert "kmsd" not in verified.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_gives_up_what_its_process_does_not_need(name: str) -> None:
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=40", UNITS / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_no_unit_puts_a_secret_into_arguments_or_environment(name: str) -> None:
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("Environment"):
            pytest.fail(line)
        if line.startswith("ExecStart="):
            assert "pin" not in line


def test_the_scripts_are_plain_sh() -> None:
    root = UNITS.parent
    for script in (root / "softhsm" / "init-token", root / "softhsm" / "install-debian"):
        shell = shutil.which("dash") or "/bin/sh"
        subprocess.run([shell, "-n", script], check=True)
