"""What `kmsd check` found, one line each."""

from dataclasses import dataclass
from enum import StrEnum

from kmsd.errors import KmsdError, PeerRefused


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """what: the thing looked at (`hsm`, `authority us`, ...). message: one sentence for people.

    next_step: what to type or do; empty when nothing is to be done.
    """

    level: Level
    what: str
    message: str
    next_step: str = ""


def ok(what: str, message: str) -> Finding:
    return Finding(Level.OK, what, message)


def warning(what: str, message: str, next_step: str = "") -> Finding:
    return Finding(Level.WARNING, what, message, next_step)


def error(what: str, message: str, next_step: str = "") -> Finding:
    return Finding(Level.ERROR, what, message, next_step)


def failed(what: str, cause: KmsdError, level: Level = Level.ERROR) -> Finding:
    """A refusal as a finding, a peer's own words with it."""
    problem = (
        f" It says: {cause.problem}" if isinstance(cause, PeerRefused) and cause.problem else ""
    )
    return Finding(level, what, f"{cause.message}{problem}", cause.next_step)
