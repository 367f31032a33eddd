"""README.md: what it tells people to type exists, and what it links to is there."""

import ast
import re
import shlex
from pathlib import Path

import kmsd_client
import pytest
import typer

from kmsd import cli
from kmsd.ctl.app import application

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"(?:^ {4,}.*\n?)+", README, flags=re.M)
LINES = [line.strip() for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]
INLINE = [code for code in re.findall(r"`([^`]+)`", README) if " " in code]
APPS = {"kmsd": cli.app, "kmsctl": application()}


def commands(program: str) -> list[list[str]]:
    """The words of every call of a program, in blocks, in pipes and in the text."""
    calls = []
    for line in LINES + INLINE:
        for part in re.split(r" \| | && |\$ ", line.partition("  #")[0]):
            words = shlex.split(part, comments=True) if part.startswith(f"{program} ") else []
            calls += [words] if words else []
    return calls


@pytest.mark.parametrize("program", APPS)
def test_every_command_has_the_arguments_and_options_it_is_shown_with(program: str) -> None:
    shown = commands(program)
    assert shown
    group = typer.main.get_command(APPS[program])
    assert isinstance(group, typer.core.TyperGroup)
    for _, name, *words in shown:
        if name.startswith("--"):
            assert any(name in parameter.opts for parameter in group.params), name
            continue
        assert name in group.commands, name
        if words or name in ("status", "profiles", "check"):
            parent = typer.Context(group, info_name=program)
            group.commands[name].make_context(name, words, parent=parent).close()


def test_every_make_target_is_there() -> None:
    wanted = set(re.findall(r"^ +make (\w+)|`make (\w+)", README, flags=re.M))
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert {first or second for first, second in wanted} <= set(targets)


def test_every_link_and_every_installed_file_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    files = [
        word
        for line in LINES
        if line.startswith("install ")
        for word in line.split()
        if word.startswith(("systemd/", "kmsd/"))
    ]
    assert links
    assert files
    for name in links + files:
        assert list(ROOT.glob(name)), name


def test_every_unit_that_is_named_is_there() -> None:
    for name in re.findall(r"kmsd-\w+@?|kmsd\.target", README):
        if name != "kmsd_client":
            assert list((ROOT / "systemd").glob(f"{name}*")), name


def test_the_program_for_authentication_servers_uses_what_the_client_has() -> None:
    (block,) = (block for block in BLOCKS if "from kmsd_client import" in block)
    body = "async def program():\n" + block
    tree = ast.parse(body)
    imported = next(node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    assert all(hasattr(kmsd_client, alias.name) for alias in imported.names)
    assert hasattr(kmsd_client.AsyncClient, "sign_shaken")


def test_no_picture_or_program_is_wider_than_a_page() -> None:
    assert max(len(line) for line in README.splitlines()) <= 110
