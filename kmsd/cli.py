"""`kmsd`: the processes of the key room, and what an operator does on the host itself.

Everything about credentials is `kmsctl`. Exit statuses: 0 well, 1 an error, 2 wrong usage,
3 `check` found warnings only, 4 a person must act, 75 the HSM was lost (start again).

Each command imports what it runs: a signer is small because it never loads the keeper's libraries.
"""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from kmsd import __version__, log
from kmsd.config import load
from kmsd.errors import KmsdError, Misconfigured
from kmsd.settings import Configuration

DEFAULT_CONFIG = Path("/etc/kmsd/kmsd.toml")
MARKS = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "error": "[red]error  [/]"}

app = typer.Typer(
    name="kmsd",
    help="The key room of a SHAKEN provider: SP-KMS (keeper) and SKS (signers), keys in an HSM.",
    epilog=(
        "Credentials are kmsctl's business. Settings: man kmsd.toml. Exit status: 0 well, 1 an "
        "error, 2 wrong usage, 3 check: warnings only, 4 a person must act, 75 the HSM was lost."
    ),
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: it is piped, searched and copied from
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Chosen:
    """What was said before the command."""

    def __init__(self, config: Path) -> None:
        self.config = config

    def load(self) -> Configuration:
        return load(self.config)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kmsd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="KMSD_CONFIG", help="The kmsd.toml to use.")
    ] = DEFAULT_CONFIG,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    context.obj = Chosen(config)


@app.command(short_help="Run keeper, signers and repository under one parent.")
def run(context: typer.Context) -> None:
    """Run everything of this host under one parent: keeper, signers, repository.

    For containers and trials; on a signing host systemd runs each by itself (kmsd.target).
    """
    from kmsd import processes

    chosen: Chosen = context.obj
    configuration = chosen.load()
    log.configure("run")
    raise typer.Exit(asyncio.run(processes.run(configuration, chosen.config)))


@app.command(short_help="Run the keeper (SP-KMS).")
def keeper(context: typer.Context) -> None:
    """Run the keeper (SP-KMS): enrolls, publishes, rotates; the only one that changes state."""
    from kmsd import keyroom

    configuration = context.obj.load()
    log.configure("keeper")
    raise typer.Exit(asyncio.run(keyroom.run(configuration)))


@app.command("signer", short_help="Run one signer (SKS).")
def signer_(
    context: typer.Context,
    index: Annotated[int, typer.Option(min=1, max=1024, help="Its number on this host.")] = 1,
) -> None:
    """Run one signer (SKS). Start one per core, each with its own --index; they share a port."""
    import uvloop

    from kmsd import signer

    configuration = context.obj.load()
    log.configure(f"signer-{index}")
    raise typer.Exit(uvloop.run(signer.run(configuration, index)))


@app.command(short_help="Serve the published chains over HTTPS (STI-CR).")
def repository(context: typer.Context) -> None:
    """Serve the repository's directory over HTTPS: the public STI-CR that x5u points to."""
    from kmsd import publicserver

    configuration = context.obj.load()
    log.configure("repository")
    asyncio.run(publicserver.run(configuration.repository))


@app.command("check", short_help="Check everything that can be reached.")
def check_(context: typer.Context) -> None:
    """Check everything that can be reached, and say what is wrong in one line each.

    Configuration, secrets, folders, HSM, store, TLS files, STI-PA, STI-CAs, repository, keyring.
    Changes nothing. A wrong PIN is tried once. Exit status: 0 all well, 3 warnings, 4 errors.
    """
    worst = asyncio.run(_check(context.obj.config))
    raise typer.Exit({"ok": 0, "warning": 3, "error": 4}[worst])


async def _check(config: Path) -> str:
    from rich.console import Console

    from kmsd.check import check

    console = Console(highlight=False)
    order = ("ok", "warning", "error")
    worst = "ok"
    async for finding in check(config):
        worst = max(worst, str(finding.level), key=order.index)
        console.print(f"{MARKS[str(finding.level)]} {finding.what}:", end=" ")
        console.print(finding.message, markup=False, soft_wrap=True)
        if finding.next_step:
            console.print(f"        → {finding.next_step}", markup=False, soft_wrap=True)
    return worst


@app.command("demo", short_help="Show the whole main job on this machine.")
def demo_(
    once: Annotated[bool, typer.Option("--once", help="End when all is shown.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="A new folder for it, which stays. [default: a temporary one]"),
    ] = None,
    module: Annotated[
        Path | None,
        typer.Option(help="SoftHSM's PKCS#11 library. [default: where it usually is]"),
    ] = None,
) -> None:
    """The whole main job on a throw-away SoftHSM token and the embedded lab, step by step.

    Goes on until Ctrl-C, with commands to try meanwhile. Exit status: 0 when every step held.
    """
    from kmsd import demo

    raise typer.Exit(demo.main(folder, once=once, module=module))


def main() -> None:
    """Entry point. An error is one sentence, its reason, and what to do."""
    try:
        app()
    except KmsdError as error:
        typer.echo(f"kmsd: {error}", err=True)
        typer.echo(f"reason: {error.reason}", err=True)
        sys.exit(4 if isinstance(error, Misconfigured) else 1)
