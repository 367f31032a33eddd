"""What the lab's roles share: the clock, the switches, the dice, the book, keys and addresses."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from kmsd.lab.pki import Pki
from kmsd.lab.state import Book
from kmsd.lab.switches import Board, Dice, Switches


@dataclass(frozen=True)
class Urls:
    """Where things are: `base` is the STI-PA's and STI-CA's listener, `cr` the STI-CR's."""

    base: str
    cr_base: str

    @property
    def pa(self) -> str:
        return f"{self.base}/pa"

    @property
    def ca(self) -> str:
        return f"{self.base}/ca"

    @property
    def crl(self) -> str:
        return f"{self.pa}/download/v1/crl"

    def pa_certificate(self, number: int) -> str:
        return f"{self.pa}/download/v1/certificate/certificateId_{number}.crt"

    def x5u(self, certificate: str) -> str:
        """Public URL of a chain hosted for the STI-CA's customers (RFC 9448 section 7)."""
        return f"{self.cr_base}/hosted/{certificate}.pem"


@dataclass(frozen=True)
class Subscriber:
    """An STI-PA account as the operator has it."""

    user: str
    password: str
    spcs: tuple[str, ...]


@dataclass(frozen=True)
class World:
    pki: Pki
    urls: Urls
    board: Board
    dice: Dice
    book: Book
    subscriber: Subscriber
    eab: dict[str, bytes]
    started: int
    clock: Callable[[], float]

    @property
    def switches(self) -> Switches:
        return self.board.now

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return self.clock()

    def today(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(int(self.clock()), datetime.UTC)

    def settles_at(self) -> float:
        return self.now() + self.dice.seconds(self.switches.delay_seconds)


def rfc3339(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return moment.isoformat().replace("+00:00", "Z")


def pairs(digest: bytes, *, upper: bool = True) -> str:
    """A fingerprint as SPC tokens write it: `SHA256 ` and 32 hex pairs with colons."""
    text = digest.hex(":")
    return "SHA256 " + (text.upper() if upper else text)
