"""The page that kmsctl writes for people: times, ids, foreign text, and two shapes of layout.

Times are UTC in ISO 8601 with the distance from now ("2026-12-21T00:00Z, in 30 d"). Text that
comes from elsewhere (an STI-CA's problem document, a file's name) may hold control characters
that would drive the terminal: they are shown as escapes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from rich.table import Table
from rich.text import Text

SHORT = 8
"""Digits of a credential id that tables show; the keeper takes any unique beginning."""


@dataclass(frozen=True)
class Page:
    """What text is laid out on. now: for relative times. width: columns of the terminal.
    wide: nothing is shortened or folded."""

    now: datetime
    width: int = 80
    wide: bool = False

    @property
    def roomy(self) -> bool:
        return self.wide or self.width >= 110

    def short(self, credential: str) -> str:
        return credential if self.wide else credential[:SHORT]

    def when(self, at: datetime | None, nothing: str = "-") -> str:
        """A time and its distance on one line; `nothing` when there is none."""
        return f"{iso(at)}, {relative(at, self.now)}" if at else nothing

    def stacked(self, at: datetime | None, nothing: str = "-") -> str:
        """The same for a table cell: on two lines, so that it is broken where it should be."""
        text = self.when(at, nothing)
        return text if self.wide else text.replace(", ", "\n")

    def brief(self, at: datetime) -> str:
        """For a note in a table: the distance alone."""
        return self.when(at) if self.wide else relative(at, self.now)


def iso(at: datetime) -> str:
    """To the minute, UTC."""
    return at.strftime("%Y-%m-%dT%H:%MZ")


def iso_seconds(at: datetime) -> str:
    """To the second, UTC."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def relative(at: datetime, now: datetime) -> str:
    """ "in 3 d", "5 min ago", "now"; rounded down, so that a deadline is never flattered."""
    seconds = int((at - now).total_seconds())
    if seconds == 0:
        return "now"
    text = duration(abs(seconds))
    return f"in {text}" if seconds > 0 else f"{text} ago"


def duration(seconds: int) -> str:
    """In the largest unit of which there are at least two (s, min, h, d), rounded down."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"


def count(number: int, noun: str) -> str:
    """ "1 key", "2 keys"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plain(text: str) -> str:
    """The text with every control character but the newline made visible."""
    return "".join(
        character if character == "\n" or character.isprintable() else ascii(character)[1:-1]
        for character in text
    )


def text(value: str, style: str = "") -> Text:
    return Text(plain(value), style)


def facts(rows: Iterable[tuple[str, str, str]]) -> Table:
    """Name, value and style of the value, in two columns; rows that share a name show it once."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    last = None
    for name, value, style in rows:
        grid.add_row("" if name == last else name, text(value, style))
        last = name
    return grid


def table(*columns: str, keep: Iterable[int] = ()) -> Table:
    """An empty table; the columns `keep` keep their width, the others give way when it is
    narrow."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    kept = set(keep)
    for number, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=number in kept)
    return made
