"""Retry-After: how long a server asks to be left alone (RFC 9110 section 10.2.3).

Pure. Servers say it as seconds or as a date, and both are met at STI-PAs and STI-CAs.
"""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

LONGEST = 86_400.0
"""Seconds that are heeded, at most: nobody puts a credential off for longer."""


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the server asks to wait: 0 to one day; None when it does not say.

    headers: of the answer, with lower-case names. now: seconds since the epoch. A date is read
    against the server's own Date when there is one: its clock may be off.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:6]), LONGEST)  # as a whole it may be infinite
    until = _http_date(value)
    if until is None:
        return None
    sent = _http_date(headers.get("date", ""))
    return min(max(until - (now if sent is None else sent), 0.0), LONGEST)


def _http_date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
