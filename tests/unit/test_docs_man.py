"""The manual pages: roff understands them, and they tell of every command and option."""

import subprocess
from pathlib import Path

import pytest
import typer

from kmsd import cli
from kmsd.ctl.app import application

KMSD = Path(__file__).parents[2] / "kmsd"
PAGES = (KMSD / "kmsd.8", KMSD / "kmsd.toml.5", KMSD / "ctl" / "kmsctl.1")


def rendered(page: Path) -> "subprocess.CompletedProcess[str]":
    """The page as a terminal of 80 columns shows it, with all of groff's warnings."""
    words: list[str | Path] = ["-mdoc", "-ww", "-Tutf8", "-P-cbou", "-K", "utf8", page]
    return subprocess.run(["groff", *words], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_renders_without_a_warning(page: Path) -> None:
    shown = rendered(page)
    assert shown.stderr == ""
    assert "NAME" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("page", "app"), [(PAGES[0], cli.app), (PAGES[2], application())], ids=["kmsd", "kmsctl"]
)
def test_a_page_tells_of_every_command_and_option(page: Path, app: typer.Typer) -> None:
    text = page.read_text().replace("Fl -", "--")
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for name, command in group.commands.items():
        assert name in text
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option in text, f"{name} {option}"
