"""One run of kmsctl: the global options, and what follows from them.

The configuration file is read only by who needs it: a keeper's address can be given, and then
kmsctl works without a readable file.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TextIO, cast

import typer
from rich.console import Console, RenderableType

from kmsd.ctl.output import Document, encoded
from kmsd.ctl.page import Page
from kmsd.errors import Misconfigured
from kmsd.settings import Configuration, Keeper

DEFAULT_CONFIG = Path("/etc/kmsd/kmsd.toml")
UNARY_TIMEOUT = 10.0
"""Seconds for a call that should be answered at once, unless --timeout says otherwise."""
ENDLESS = 4000
"""Columns of a page on which nothing is folded (--output wide)."""

_GLOBAL = ("--config", "-c", "--keeper", "--output", "-o", "--timeout")
_GLOBAL_WITH_VALUE = ("--config=", "--keeper=", "--output=", "--timeout=", "-ojson", "-owide")


class Output(StrEnum):
    """What --output takes."""

    TABLE = "table"
    JSON = "json"
    WIDE = "wide"


@dataclass(frozen=True)
class Invocation:
    """The global options. config is None when it was not named anywhere; keeper "" likewise;
    timeout: seconds, None when not given."""

    config: Path | None = None
    keeper: str = ""
    output: Output = Output.TABLE
    timeout: float | None = None

    @property
    def json(self) -> bool:
        return self.output is Output.JSON

    @property
    def patience(self) -> float:
        """Seconds to wait for one answer."""
        return self.timeout or UNARY_TIMEOUT

    def now(self) -> datetime:
        return datetime.fromtimestamp(int(time.time()), UTC)

    def address(self) -> str:
        """Where the keeper listens. Raises Misconfigured when the file is wrong."""
        if self.keeper:
            return self.keeper
        if self.config is None and not os.access(DEFAULT_CONFIG, os.R_OK):
            return Keeper().listen  # most operators may use the socket and not read the file
        return self.configuration().keeper.listen

    def configuration(self) -> Configuration:
        """The configuration file as a whole. Raises Misconfigured."""
        from kmsd import config  # not needed by most commands, and not cheap

        path = self.config or DEFAULT_CONFIG
        try:
            return config.load(path)
        except OSError as error:
            what = error.strerror or str(error)
            raise Misconfigured(
                "CONFIG_UNREADABLE",
                f"The configuration {path} cannot be read: {what}.",
                next_step="Name it with --config FILE, or the keeper with --keeper ADDRESS.",
            ) from error

    def screen(self, stream: TextIO | None = None) -> Console:
        """A console on a stream (None: standard output): colour on a terminal only."""
        out = stream or sys.stdout
        colour = out.isatty() and not os.environ.get("NO_COLOR")
        return Console(
            file=out,
            width=ENDLESS if self.output is Output.WIDE else None,
            color_system="auto" if colour else None,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def page(self, now: datetime | None = None) -> Page:
        width = self.screen().width
        return Page(now or self.now(), width, wide=self.output is Output.WIDE)

    def show(self, document: Document, view: Callable[[Page], RenderableType]) -> None:
        """The document as JSON, or as `view` lays it out."""
        if self.json:
            typer.echo(encoded(document))
        else:
            self.lay_out(view(self.page(getattr(document, "now", None))))

    def lay_out(self, what: RenderableType) -> None:
        """Text on standard output, without the blanks that tables pad their lines with."""
        screen = self.screen()
        with screen.capture() as captured:
            screen.print(what)
        for line in captured.get().splitlines():
            typer.echo(line.rstrip(), color=True)


def of(context: typer.Context) -> Invocation:
    """The invocation that a command runs in."""
    return cast("Invocation", context.find_root().obj)


def hoisted(arguments: Sequence[str]) -> list[str]:
    """The arguments with the global options first, where the parser wants them, so that
    `kmsctl status -o json` works as `kmsctl -o json status` does. Nothing after `--` moves."""
    first: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            rest += [argument, *waiting]
            break
        if argument in _GLOBAL:
            first += [argument, *waiting[:1]]
            del waiting[:1]
        elif argument.startswith(_GLOBAL_WITH_VALUE):
            first.append(argument)
        else:
            rest.append(argument)
    return first + rest


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether a program reads this run, also when the rest of the command line is wrong.
    arguments: as `hoisted` returns them."""
    joined = {"-ojson", "--output=json"}
    return not joined.isdisjoint(arguments) or any(
        name in ("-o", "--output") and value == "json" for name, value in pairwise(arguments)
    )
