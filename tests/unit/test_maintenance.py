"""Maintenance windows: what may be written, and when one is open."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.errors import Invalid
from kmsd.maintenance import DAY, WEEK, Span, last, opening, parse

MONDAY = int(datetime(2027, 1, 4, tzinfo=UTC).timestamp())
HOUR = 3600


def test_days_and_hours_become_parts_of_the_week() -> None:
    assert parse("Mon 08:00-16:30") == (Span(8 * HOUR, 8 * HOUR + 1800),)
    assert [span.start // DAY for span in parse("Mon-Fri 08:00-16:00")] == [0, 1, 2, 3, 4]
    assert [span.start // DAY for span in parse("Sat-Mon,Wed 08:00-16:00")] == [0, 2, 5, 6]
    assert len(parse("02:00-04:00")) == 7


def test_a_window_may_go_past_midnight_and_may_last_a_day() -> None:
    assert parse("Sun 22:00-04:00") == (Span(6 * DAY + 22 * HOUR, 6 * HOUR),)
    assert parse("Sun 00:00-24:00") == (Span(6 * DAY, DAY),)
    assert parse("Sun 12:00-12:00") == (Span(6 * DAY + 12 * HOUR, DAY),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mon",
        "08:00",
        "Mon-Fri",
        "Mon- 08:00-16:00",
        "-Mon 08:00-16:00",
        "Mon,,Tue 08:00-16:00",
        "Mo 08:00-16:00",
        "Mon 8:00-16:00",
        "Mon 24:00-02:00",
        "Mon 01:00-24:30",
        "Mon 25:00-26:00",
        "Mon Tue 01:00-02:00",
        "Mon 01:00-02:00 ",
        "Mon 01:60-02:00",
    ],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse(text)
    assert refused.value.reason == "WINDOW_INVALID"


def test_the_window_that_is_open_or_the_next_one_is_found() -> None:
    spans = parse("Mon-Fri 08:00-16:00")
    opens, closes = MONDAY + 8 * HOUR, MONDAY + 16 * HOUR
    assert opening(opens - 1, spans) == (opens, closes)
    assert opening(opens, spans) == (opens, closes)
    assert opening(closes - 1, spans) == (opens, closes)
    assert opening(closes, spans) == (opens + DAY, closes + DAY)
    friday_evening = MONDAY + 4 * DAY + 16 * HOUR
    assert opening(friday_evening, spans) == (opens + WEEK, closes + WEEK)


def test_a_window_past_midnight_on_sunday_is_open_on_monday() -> None:
    spans = parse("Sun 22:00-04:00")
    assert opening(MONDAY + HOUR, spans) == (MONDAY - 2 * HOUR, MONDAY + 4 * HOUR)


TEXTS = st.sampled_from(
    ["Mon-Fri 08:00-16:00", "22:00-04:00", "Sun 12:00-12:00", "Sat 00:00-00:01"]
)


@given(st.integers(0, 2**32), st.lists(TEXTS, min_size=1, max_size=3))
def test_a_window_is_never_over_and_begins_within_a_week(moment: int, texts: list[str]) -> None:
    spans = [span for text in texts for span in parse(text)]
    begin, end = opening(moment, spans)
    assert moment < end
    assert begin < moment + WEEK
    assert opening(max(begin, moment), spans) == (begin, end)


@given(st.integers(0, 2**32), st.lists(TEXTS, min_size=1, max_size=3))
def test_the_last_window_was_over_within_a_week(moment: int, texts: list[str]) -> None:
    spans = [span for text in texts for span in parse(text)]
    begin, end = last(moment, spans)
    assert begin < end <= moment < end + WEEK
    assert opening(begin, spans)[0] <= begin


def test_the_last_window_is_that_of_the_day_before() -> None:
    spans = parse("Mon-Fri 08:00-16:00")
    friday = (MONDAY + 4 * DAY + 8 * HOUR, MONDAY + 4 * DAY + 16 * HOUR)
    assert last(friday[1], spans) == friday
    assert last(MONDAY + WEEK, spans) == friday
