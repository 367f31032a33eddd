"""What a client was made with: checked early, said once, and the default of every call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DEFAULT_TIMEOUT: Final = 1.0
"""Seconds: a caller waits for ringing, and a late signature is a dropped call."""

DEFAULT_CONNECTIONS: Final = 4
DEFAULT_FRAME_ITEMS: Final = 64
DEFAULT_QUEUE_ITEMS: Final = 4096


@dataclass(frozen=True, slots=True)
class Terms:
    """Fields as the arguments of `AsyncClient`. Raises ValueError for what makes no sense."""

    targets: tuple[str, ...]
    profile: str
    timeout: float
    connections: int
    frame_items: int
    queue_items: int

    def __post_init__(self) -> None:
        if not self.targets or not all(self.targets):
            raise ValueError("a client needs the address of at least one signer")
        checked(self.timeout)
        _count("connections", self.connections, 64)
        _count("frame_items", self.frame_items, 256)
        _count("queue_items", self.queue_items, 1_000_000)

    def of(self, profile: str | None, timeout: float | None) -> tuple[str, float]:
        """Profile and seconds of a call that says these, or None for the client's."""
        return (
            self.profile if profile is None else profile,
            self.timeout if timeout is None else checked(timeout),
        )


def checked(timeout: float) -> float:
    """The timeout. Raises ValueError for one that is none."""
    if not 0 < timeout <= 3600:  # not a number fails both
        raise ValueError("a timeout is more than 0 and at most 3600 seconds")
    return timeout


def addresses(targets: str | Sequence[str]) -> tuple[str, ...]:
    """One address or several, as several."""
    return (targets,) if isinstance(targets, str) else tuple(targets)


def _count(name: str, value: int, highest: int) -> None:
    if not isinstance(value, int) or not 1 <= value <= highest:
        raise ValueError(f"{name} is a whole number from 1 to {highest}")
