"""The picture of the enrollment machine, drawn from its table.

    python -m tests.machine > kmsd/machine.md

writes it; `tests/unit/test_docs_machine.py` holds it to the table. The text around it is here.
"""

import re
import sys
from collections.abc import Iterator

from kmsd.enrollment import ON_THE_WAY, PATH, Action, Outcome, Wait
from kmsd.model import Active, Destroyed, Failed, New, State

HEADER = """\
# The life of a credential

Every state a credential can be in, and what leads from one to the next: what is done, and what
must come of it. Each state is stored before the next step leaves, and every step can be repeated,
so that a crash anywhere repeats at most one. Drawn from the table in `kmsd/enrollment.py` by
`python -m tests.machine > kmsd/machine.md`.

"""
FOOTER = """
Besides:

- *Deferred* keeps any state: what did not work is tried again, after pauses that grow to ten
  minutes or to what the other side asked for.
- *Ended* leads from every state before *Active* to *Failed*: a person must look at it. The profile
  goes on with the credential it has.
- *RestoreAsked* leads from *Doomed* back to what it was.
- A rehearsal is tried where others are activated, and its key is destroyed at once.
- *Superseded* is stored together with the *Switched* of the credential that took its place: never
  are two active.

| In state | is done | and with | leads to |
|---|---|---|---|
"""


def words(kind: type) -> str:
    """PlaceOrder as people write it: place order."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def label(action: type[Action], outcome: type[Outcome]) -> str:
    return words(outcome) if action is Wait else f"{words(action)} → {words(outcome)}"


def diagram() -> Iterator[str]:
    """Mermaid, state by state in the order of the table."""
    yield "stateDiagram-v2"
    yield f"    [*] --> {New.__name__}"
    for state, action, outcome, after in PATH:
        yield f"    {state.__name__} --> {after.__name__}: {label(action, outcome)}"
    first, last = ON_THE_WAY[0].__name__, ON_THE_WAY[-1].__name__
    yield f"    {first} --> {Failed.__name__}: ended (as from all up to {last})"
    yield f"    {Destroyed.__name__} --> [*]"
    yield f"    class {Active.__name__} active"
    yield "    classDef active font-weight:bold,stroke-width:3px"


def rows() -> Iterator[str]:
    for state, action, outcome, after in PATH:
        done = "" if action is Wait else words(action)
        yield f"| {state.__name__} | {done} | {outcome.__name__} | {after.__name__} |"


def page() -> str:
    """kmsd/machine.md."""
    drawing = "\n".join(diagram())
    table = "\n".join(rows())
    return f"{HEADER}```mermaid\n{drawing}\n```\n{FOOTER}{table}\n"


def states() -> frozenset[type[State]]:
    """The states that the picture shows."""
    return frozenset(state for before, _, _, after in PATH for state in (before, after))


if __name__ == "__main__":
    sys.stdout.write(page())
