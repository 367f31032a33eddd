"""The steps of an enrollment as they happen: a line each, and on a terminal a spinner with
what is waited for below them. For programs: a JSON document a line."""

import time
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kmsd.ctl.invocation import Invocation
from kmsd.ctl.output import ProgressDocument, encoded
from kmsd.ctl.page import iso_seconds, plain, text


class Steps:
    """Held while an enrollment is followed. begun: seconds of the monotonic clock."""

    def __init__(self, run: Invocation, begun: float) -> None:
        self._run = run
        self._begun = begun
        self._console: Console = run.screen()
        self._live = self._console.is_terminal and not run.json
        self._spinner = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._spinner.add_task("asking the keeper")

    def __enter__(self) -> Self:
        self._spinner.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._spinner.stop()

    def add(self, step: ProgressDocument) -> None:
        """Shows one step: when, how long since the start, the state it led to, and what it was."""
        if self._run.json:
            typer.echo(encoded(step))
            return
        style = ""
        words = plain(step.message)
        if step.reason:
            style = "red" if step.done else "yellow"
            words = f"{words} ({step.reason})"
        elif step.done:
            style = "green"
        passed = f"+{time.monotonic() - self._begun:.1f} s"
        state = step.credential.state
        if not self._live:  # one line a step, never folded: it is read with grep
            when = iso_seconds(step.at)
            typer.echo(f"{when}  {passed:>8}  {plain(state):<10}  {' '.join(words.split())}")
            return
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(no_wrap=True, justify="right", min_width=8)
        line.add_column(no_wrap=True, min_width=10)
        line.add_column(overflow="fold")
        line.add_row(passed, text(state), text(words, style))
        self._console.print(line)
        self._spinner.update(self._task, description=words.partition("\n")[0])
