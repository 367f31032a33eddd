"""What may be asked of a profile, and what the refusals say."""

import pytest

from kmsd.errors import Precondition
from kmsd.preconditions import busy, check_begin, unknown_profile, wrong_state
from tests.unit.test_enrollment import FRESH, OUTCOMES, walk

ACTIVE = walk(*OUTCOMES[:7])


def test_a_first_credential_is_enrolled_and_the_next_one_rotated_to() -> None:
    check_begin("acme", [], rotate=False)
    check_begin("acme", [FRESH], rotate=False)
    check_begin("acme", [FRESH, ACTIVE], rotate=True)


@pytest.mark.parametrize(
    ("credentials", "rotate", "reason", "command"),
    [
        ([ACTIVE], False, "PROFILE_ACTIVE", "kmsctl rotate acme"),
        ([], True, "PROFILE_NOT_ENROLLED", "kmsctl enroll acme"),
    ],
)
def test_the_wrong_one_of_the_two_is_refused_with_the_right_one(
    credentials: list[object], rotate: bool, reason: str, command: str
) -> None:
    with pytest.raises(Precondition) as refused:
        check_begin("acme", credentials, rotate=rotate)  # type: ignore[arg-type]
    assert refused.value.reason == reason
    assert refused.value.next_step.endswith(command)


def test_an_unknown_profile_is_named_but_not_at_any_length() -> None:
    error = unknown_profile("x" * 1000)
    assert (error.reason, len(error.metadata["profile"])) == ("PROFILE_UNKNOWN", 64)


def test_a_wrong_state_is_named_with_what_would_be_right() -> None:
    error = wrong_state(ACTIVE, "destroyed", "Only a retired or failed one can be.")
    assert error.metadata["state"] == "active"
    assert "cannot be destroyed. Only" in error.message


def test_a_credential_in_the_middle_of_a_step_is_worth_asking_again() -> None:
    assert busy(FRESH).code == "UNAVAILABLE"
