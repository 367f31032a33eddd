"""Maintenance windows: the hours of the week in which renewals are begun.

Pure: `Mon-Fri 08:00-16:00` to seconds and back to moments, all UTC. What may not wait for a
window is `rotation`'s to say.
"""

import re
from collections.abc import Sequence

from kmsd.errors import Invalid
from kmsd.model import Value

MINUTE, DAY, WEEK = 60, 86_400, 604_800
MONDAY = 4 * DAY
"""The first Monday, seconds since the epoch: 1970 began on a Thursday."""
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_CLOCK = r"([01][0-9]|2[0-4]):([0-5][0-9])"


class Span(Value, frozen=True):
    """A part of every week. start: seconds after Monday 00:00 UTC; length: seconds, over 0."""

    start: int
    length: int


def parse(text: str) -> tuple[Span, ...]:
    """`[days ]HH:MM-HH:MM`; days: `Mon`, `Mon-Fri`, `Sat,Sun`, none for every day.

    An end that is not after the start is on the next day. Raises Invalid (WINDOW_INVALID).
    """
    days, _, hours = text.rpartition(" ")
    match = re.fullmatch(f"{_CLOCK}-{_CLOCK}", hours)
    if match is None:
        raise _wrong()
    numbers = [int(group) for group in match.groups()]
    start, end = (60 * MINUTE * hour + MINUTE * minute for hour, minute in _pairs(numbers))
    if start >= DAY or end > DAY:
        raise _wrong()
    length = end - start if end > start else end - start + DAY
    return tuple(Span(day * DAY + start, length) for day in _days(days))


def opening(moment: int, spans: Sequence[Span]) -> tuple[int, int]:
    """The window that `moment` is in, or the next one: from and to, seconds UTC.

    Windows that overlap or touch are not joined. spans: at least one.
    """
    found = []
    for span in spans:
        # The last beginning at or before the moment; a week later, if that one is over.
        begun = moment - (moment - MONDAY - span.start) % WEEK
        begun += 0 if moment < begun + span.length else WEEK
        found.append((begun, begun + span.length))
    # The one open longest from now on, else the first to open.
    return min(found, key=lambda each: (max(each[0], moment), -each[1]))


def last(moment: int, spans: Sequence[Span]) -> tuple[int, int]:
    """The window that was over last at `moment`: from and to. spans: at least one."""
    ends = [moment - (moment - MONDAY - span.start - span.length) % WEEK for span in spans]
    return max((end - span.length, end) for end, span in zip(ends, spans, strict=True))


def _days(text: str) -> list[int]:
    if not text:
        return list(range(len(DAYS)))
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS or part.endswith("-"):
            raise _wrong()
        begin, end = DAYS.index(first), DAYS.index(last or first)
        chosen += [(begin + n) % 7 for n in range((end - begin) % 7 + 1)]
    return sorted(set(chosen))


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    return [(numbers[0], numbers[1]), (numbers[2], numbers[3])]


def _wrong() -> Invalid:
    return Invalid(
        "WINDOW_INVALID",
        "A maintenance window is written as in `Mon-Fri 08:00-16:00`, in UTC.",
        next_step="Days are Mon Tue Wed Thu Fri Sat Sun, with - or , between, or none at all.",
    )
