"""`kmsd` as it is typed: help, errors in one sentence, exit statuses, completion."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from kmsd import __version__
from kmsd.cli import app

COMMANDS = sorted(typer.main.get_group(app).commands)


def kmsd(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [Path(sys.executable).with_name("kmsd"), *words],
        env={**os.environ, "COLUMNS": "100", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_commands_are_those_of_the_key_room() -> None:
    assert {"run", "keeper", "signer", "repository", "check", "demo"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command: str) -> None:
    done = kmsd(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"kmsd {command}" in done.stdout


def test_help_and_version_need_no_configuration() -> None:
    done = kmsd("--version", KMSD_CONFIG="/nowhere/kmsd.toml")
    assert (done.returncode, done.stdout) == (0, f"kmsd {__version__}\n")
    done = kmsd("-h")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [(), ("nonsense",), ("signer", "--index", "0"), ("signer", "--index", "x"), ("run", "x")],
    ids=" ".join,
)
def test_wrong_usage_is_exit_status_2(words: tuple[str, ...]) -> None:
    done = kmsd(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run", "keeper", "signer", "repository"])
def test_a_configuration_that_is_not_there_is_one_sentence(command: str, tmp_path: Path) -> None:
    done = kmsd("--config", str(tmp_path / "kmsd.toml"), command)
    assert done.returncode == 4
    assert done.stdout == ""
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("kmsd: ")
    assert str(tmp_path / "kmsd.toml") in done.stderr
    assert re.fullmatch(r"reason: [A-Z_]+", last)


def test_every_fault_of_a_configuration_is_told_at_once(tmp_path: Path) -> None:
    config = tmp_path / "kmsd.toml"
    config.write_text('[hsm]\nthreads = 0\ncolour = "red"\n')
    done = kmsd("keeper", KMSD_CONFIG=str(config))
    assert done.returncode == 4
    assert "hsm.colour" in done.stderr
    assert "repository" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_given_their_completion(shell: str) -> None:
    done = kmsd(_KMSD_COMPLETE=f"source_{shell}")
    assert done.returncode == 0
    assert "_KMSD_COMPLETE" in done.stdout


def test_commands_are_completed() -> None:
    done = kmsd(_KMSD_COMPLETE="complete_bash", COMP_WORDS="kmsd si", COMP_CWORD="1")
    assert done.stdout.split() == ["signer"]
