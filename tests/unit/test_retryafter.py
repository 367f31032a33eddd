"""How long a server asks to be left alone, in all the forms there are."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.retryafter import LONGEST, retry_after

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


def date(**later: int) -> str:
    return format_datetime(NOW + timedelta(**later), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "9" * 400}, LONGEST),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": date(seconds=90)}, 90.0),
        ({"retry-after": date(seconds=-90)}, 0.0),
        ({"retry-after": date(days=400)}, LONGEST),
        ({"retry-after": date(hours=1, seconds=30), "date": date(hours=1)}, 30.0),
        ({"retry-after": date(seconds=30), "date": "yesterday"}, 30.0),
        ({"retry-after": "Wed, 01 Jul 2026 25:61:00 GMT"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT", "date": date(seconds=5)}, 0.0),
        (
            {
                "retry-after": "Thu, 01 Jan 1970 00:01:00 GMT",
                "date": "Thu, 01 Jan 1970 00:00:00 GMT",  # a clock that nobody has set
            },
            60.0,
        ),
    ],
)
def test_it_is_seconds_or_a_date_and_anything_else_is_none(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, NOW.timestamp()) == seconds


@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "date"]),
        st.binary(max_size=30).map(lambda octets: octets.decode("latin-1"))
        | st.integers().map(str)
        | st.datetimes().map(lambda moment: format_datetime(moment.replace(tzinfo=UTC), True)),
    ),
    st.floats(0, 4e9),
)
def test_nobody_is_put_off_for_more_than_a_day(headers: dict[str, str], now: float) -> None:
    wait = retry_after(headers, now)
    assert wait is None or 0.0 <= wait <= LONGEST
