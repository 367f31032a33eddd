"""How long a call that is made now would wait, and when that is too long to begin with.

What is accepted has to stay quick: where more is asked for than signers sign, a queue only makes
every answer late. So a backlog that stands longer than BURST takes no more calls than are
answered within LONGEST_WAIT; one that comes and goes is what a queue is for.

Pure; the clock (`time.monotonic` seconds) is an argument.
"""

from math import inf
from typing import Final

from kmsd_client.errors import Overloaded

LONGEST_WAIT: Final = 0.030
"""Seconds to an answer that a call may have before it where the backlog stands. With the signer's
own time it is to stay below 50 ms."""

BURST: Final = 0.1
"""Seconds for which a longer backlog is let be."""

CALM: Final = 1.0
"""Seconds without a longer backlog after which one is a burst again."""

ALWAYS: Final = 128
"""Calls under way and waiting that are never too many."""

RECOVERY: Final = 2.0
"""Seconds after a signer was lost in which nothing is: others have its calls as well."""

MEMORY: Final = 128
"""Answers over which the pace is averaged, about."""


class Backlog:
    """The pace of one client's answers, from all signers together."""

    def __init__(self) -> None:
        self._pace = 0.0
        self._answered_at = 0.0
        self._is_busy = False
        self._long_since = self._long_at = -inf
        self._patient_until = 0.0

    def answered(self, items: int, now: float, *, more: bool) -> None:
        """So many calls were answered at once. more: there are others, so that the next answer
        comes as soon as signers can give it, and not as soon as somebody asks."""
        if self._is_busy and items:
            each = (now - self._answered_at) / items
            self._pace += (each - self._pace) * min(1.0, items / MEMORY)
        self._answered_at = now
        self._is_busy = more

    def interrupted(self, now: float) -> None:
        """A signer was lost: what comes now says nothing of how things are."""
        self._is_busy = False
        self._patient_until = now + RECOVERY

    def check(self, ahead: int, now: float) -> None:
        """Raises Overloaded ("CLIENT_QUEUE_FULL") for one more call behind `ahead` others."""
        wait = ahead * self._pace
        if wait <= LONGEST_WAIT or ahead < ALWAYS:
            return
        if not now - self._long_at < CALM:
            self._long_since = now
        self._long_at = now
        if now - self._long_since < BURST or now < self._patient_until:
            return
        raise Overloaded(
            "CLIENT_QUEUE_FULL",
            f"The {ahead} calls before this one take about {wait * 1000:.0f} ms; send less.",
            {"limit": str(ahead)},
            wait + LONGEST_WAIT,  # after `wait` others have taken the places: it stands
        )
