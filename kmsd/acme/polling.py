"""Waiting for an ACME resource to become final, at the pace the server asks for.

RFC 8555 section 7.5.1, Retry-After of RFC 9110 section 10.2.3.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kmsd.errors import Unavailable

SHORTEST, LONGEST = 0.5, 5.0
"""Seconds between two looks when the server does not say: doubled from one to the other."""

T = TypeVar("T")


class Patience:
    """How long one job waits for one STI-CA, over all it has to look at."""

    def __init__(self, issuer: str, limit: float) -> None:
        """limit: seconds from now. Needs a running event loop."""
        self._issuer = issuer
        self._limit = limit
        self._end = asyncio.get_running_loop().time() + limit

    async def until(
        self,
        enough: Callable[[T], bool],
        look: Callable[[str], Awaitable[tuple[T, float | None]]],
        url: str,
    ) -> T:
        """What `look(url)` shows as soon as it is `enough`.

        look: returns what there is, and the seconds the server asks to wait before the next
        look (None: it does not say). Raises Unavailable (ACME_POLL_LIMIT) as soon as waiting
        would take longer than the limit; its retry_after is the time to come back.
        """
        pause = SHORTEST
        while True:
            seen, asked = await look(url)
            if enough(seen):
                return seen
            wait = max(SHORTEST, pause if asked is None else asked)
            if asyncio.get_running_loop().time() + wait > self._end:
                # Asking sooner than the STI-CA wants would only earn a rate limit.
                raise Unavailable(
                    "ACME_POLL_LIMIT",
                    f"STI-CA {self._issuer} is not done yet; waited at most {self._limit:g} s.",
                    retry_after=wait,
                    issuer=self._issuer,
                )
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST)
