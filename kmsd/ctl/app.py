"""The wiring of kmsctl: the typer application, its global options and its commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import kmsd
from kmsd.ctl import (
    accounts,
    changing,
    foresight,
    looking,
    output,
    signing,
    trusting,
    verify,
)
from kmsd.ctl.failure import MEANINGS, ExitCode, UsageError
from kmsd.ctl.invocation import DEFAULT_CONFIG, UNARY_TIMEOUT, Invocation, Output

HELP = """Operate kmsd, the key room of a SHAKEN provider.

Talks to the keeper on its socket. Tables are for people and may change; programs take
-o json, whose shape `kmsctl schema` prints. Global options may stand anywhere.

\b
Begin with:
  kmsctl status
  kmsctl profiles
  kmsctl enroll PROFILE
"""

EPILOG = "\b\nExit codes:\n" + "\n".join(
    f"  {code.value:<3}  {meaning}" for code, meaning in MEANINGS.items()
)


def application() -> typer.Typer:
    """kmsctl as a typer application; commands return their exit code."""
    app = typer.Typer(
        name="kmsctl",
        help=HELP,
        epilog=EPILOG,
        rich_markup_mode=None,  # plain help: it is piped, searched and copied from
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global)
    for command, short_help in _COMMANDS:
        app.command(command.__name__, short_help=short_help)(command)
    for group, (words, commands) in _GROUPS.items():
        under = typer.Typer(help=words, rich_markup_mode=None, no_args_is_help=True)
        for command, short_help in commands:
            under.command(command.__name__, short_help=short_help)(command)
        app.add_typer(under, name=group)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kmsctl {kmsd.__version__}")
        raise typer.Exit


def _global(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            envvar="KMSD_CONFIG",
            help=f"Configuration; read only by who needs it. [default: {DEFAULT_CONFIG}]",
        ),
    ] = None,
    keeper: Annotated[
        str,
        typer.Option(
            "--keeper",
            metavar="ADDRESS",
            help="The keeper: unix:PATH or host:port. [default: as in the configuration]",
        ),
    ] = "",
    output_format: Annotated[
        Output,
        typer.Option("--output", "-o", help="wide: a table on which nothing is shortened."),
    ] = Output.TABLE,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            help=f"How long to wait. [default: {UNARY_TIMEOUT:g}; enroll, rotate: no end]",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print it and exit.")
    ] = False,
) -> None:
    if timeout is not None and timeout <= 0:
        raise typer.BadParameter("a time to wait is more than 0 seconds", param_hint="--timeout")
    context.obj = Invocation(config=config, keeper=keeper, output=output_format, timeout=timeout)


def schema(
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND",
            help="The command whose documents are described; without it: all of them.",
            autocompletion=lambda: list(output.PRINTED_BY),
        ),
    ] = "",
) -> int:
    """Print the JSON Schema of what --output json prints.

    Every document begins with "schema": "kmsctl/1" and its "kind". Within one version fields
    are added, never renamed or removed.

    \b
    Examples:
      kmsctl schema
      kmsctl schema status > kmsctl-status.schema.json
    """
    if command and command not in output.PRINTED_BY:
        raise UsageError(
            "COMMAND_UNKNOWN",
            f"{command!r} prints no document.",
            next_step="kmsctl schema, or one of: " + " ".join(output.PRINTED_BY),
        )
    typer.echo(json.dumps(output.schema(command), indent=2))
    return ExitCode.OK


_COMMANDS: tuple[tuple[Callable[..., Any], str], ...] = (
    (looking.status, "The whole key room on one screen, with alarms."),
    (looking.profiles, "What each profile signs with, and what is next."),
    (looking.credentials, "Keys with their chains and x5u, newest first."),
    (looking.credential, "One credential, its chain, its key's origin."),
    (foresight.explain, "Why it is in its state, and who can help."),
    (foresight.plan, "The calendar of what will happen."),
    (changing.enroll, "Get a profile's first credential."),
    (changing.rotate, "Get a new one and switch every signer to it."),
    (changing.rollback, "Go back to the credential before."),
    (changing.revoke, "Ask the STI-CA to revoke a certificate."),
    (changing.destroy, "Schedule the destruction of a key."),
    (changing.restore, "Take a scheduled destruction back."),
    (signing.sign, "Sign one PASSporT, print the Identity header."),
    (verify.verify, "Verify an Identity header as a callee would."),
    (schema, "Print the JSON Schema of -o json."),
)
_Command = tuple[Callable[..., Any], str]
_GROUPS: dict[str, tuple[str, tuple[_Command, ...]]] = {
    "account": (
        "ACME accounts at the STI-CAs.",
        ((accounts.roll, "Give an account a new key."),),
    ),
    "trust": (
        "Trust material: lists of STI-CAs, CRLs.",
        ((trusting.forget, "Accept lower numbers, once."),),
    ),
}
