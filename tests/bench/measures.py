"""The measurements, each a small function that says what is measured with what load.

A `Measurement` is up all the time; `alternate` gives each of several a round in turn.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.crew import Crew, crew
from tests.bench.figures import Round, Row, Setup, row_of
from tests.bench.stage import Server, cores, echo, host, key_of, secsipidx, signers
from tests.system.signing_host import SigningHost

SLOW_CALL = 0.002
SLOW_SESSIONS = 8
"""Of all signers together; as many as two cores feed: the SoftHSM behind the delay needs that CPU
itself, which a network HSM would not (about 0.2 ms a signature where nothing is in its caches)."""


@dataclass(frozen=True)
class Pace:
    """How long and how often. seconds: of what counts in a round, after `warm` seconds."""

    rounds: int
    seconds: float
    warm: float


@dataclass
class Measurement:
    """One row in the making. server: None for the HSM alone, whose load is what is measured."""

    name: str
    crew: Crew
    server: Server | None
    frame: int = 1
    at_once: Sequence[int] = (1,)
    rate: float = 0.0
    rounds: list[Round] = field(default_factory=list)

    def round(self, pace: Pace) -> None:
        self.rounds.append(
            self.crew.round(
                pace.seconds,
                warm=pace.warm,
                servers=self.server.pids if self.server else (),
                frame=self.frame,
                at_once=self.at_once,
                rate=self.rate,
            )
        )

    def row(self) -> Row:
        """The medians so far, and the memory so far."""
        load = self.crew.peak_mib()
        signer = self.server.peak_mib() if self.server else load
        return row_of(self.name, self.frame, self.rounds, signer, load if self.server else 0.0)

    def per_s(self) -> list[float]:
        """Signatures a second in each round."""
        return [one.per_s for one in self.rounds]


def alternate(measurements: Sequence[Measurement], pace: Pace) -> None:
    """Rounds in turn: what disturbs this machine for a while disturbs all alike."""
    for _ in range(pace.rounds):
        for one in measurements:
            one.round(pace)


def hsm_ceiling(stack: ExitStack, at: SigningHost) -> Measurement:
    """The HSM alone: a bare python-pkcs11 loop, one process a core."""
    setup = Setup(kind="hsm", hsm=key_of(at), environment=dict(at.hsm.environment))
    return Measurement("hsm_ceiling", stack.enter_context(crew(setup, cores())), None)


def streams(load: Crew, server: Server, frame: int, name: str = "stream") -> Measurement:
    """SignStream with frames of this size, 64 signatures under way on each connection."""
    return Measurement(name, load, server, frame, at_once=(max(1, 64 // frame),))


def callers(load: Crew, server: Server, number: int) -> Measurement:
    """`kmsd_client`: so many concurrent callers of single signatures, over all processes."""
    each = [len(range(index, number, cores())) for index in range(cores())]
    return Measurement(f"client_{number}", load, server, at_once=each)


def unary(stack: ExitStack, server: Server) -> Measurement:
    """Sign, one signature a call, eight calls under way on each connection."""
    return Measurement("unary", server.balanced(server.crew(stack, "unary")), server, at_once=(8,))


def unary_echo(stack: ExitStack, folder: Path) -> Measurement:
    """The same calls, answered without signing."""
    server = echo(stack, folder)
    load = server.balanced(server.crew(stack, "unary"))
    return Measurement("unary_echo", load, server, at_once=(8,))


def software_signer(stack: ExitStack, folder: Path) -> Measurement | None:
    """secsipidx over HTTP, where it is installed: sixteen connections from each load process."""
    server = secsipidx(stack, folder)
    if server is None:
        return None
    return Measurement("secsipidx", server.crew(stack, "secsipidx", at_each=16), server)


def slow_hsm(stack: ExitStack, folder: Path) -> Measurement:
    """One signer a core, eight sessions together, on an HSM of 2 ms a call."""
    at = host(folder / "slow", threads=SLOW_SESSIONS // cores(), delay=SLOW_CALL)
    server = signers(stack, at)
    load = server.balanced(server.crew(stack, "streams"))
    return Measurement("slow_hsm", load, server, frame=16)
