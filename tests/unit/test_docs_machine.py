"""The picture of the enrollment machine is the machine."""

from typing import get_args

from kmsd.enrollment import PATH
from kmsd.model import State
from tests.machine import diagram, page, states
from tests.reasons import SOURCE


def test_the_picture_is_drawn_from_the_table() -> None:
    written = (SOURCE / "machine.md").read_text("utf-8")
    assert written == page(), "draw it anew: python -m tests.machine > kmsd/machine.md"


def test_every_state_there_is_is_in_the_picture() -> None:
    assert states() == set(get_args(State))


def test_every_step_of_the_table_is_an_arrow() -> None:
    arrows = [line for line in diagram() if "-->" in line]
    assert len(arrows) == len(PATH) + 3  # the beginning, the end, and what ends on the way
