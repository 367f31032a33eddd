"""One alarm clock for the deadlines of many calls.

Not here: what is late then (`calls`, `streams`).
"""

import asyncio
import time
from collections.abc import Callable
from math import inf
from typing import Final

GRAIN: Final = 0.005
"""Seconds between two looks at the deadlines, at least."""


class Alarm:
    """Rings when the first deadline has passed; times are `time.monotonic` seconds.

    ring: is given the time, deals with what is late, and gives the next deadline (`inf`: none).
    """

    def __init__(self, ring: Callable[[float], float]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._at = inf

    def by(self, deadline: float, now: float) -> None:
        """Rings at `deadline` at the latest."""
        if deadline < self._at:
            self.stop()
            self._at = deadline
            self._timer = self._loop.call_later(max(GRAIN, deadline - now), self._rings)

    def stop(self) -> None:
        """Rings no more, until there is another deadline."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._at = None, inf

    def _rings(self) -> None:
        self._timer, self._at = None, inf
        now = time.monotonic()
        self.by(self._ring(now), now)
