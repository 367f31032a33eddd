"""Reasons are API: well formed, of one meaning, and documented."""

import re

from tests.reasons import SOURCE, Reason, reasons, table

ALL = list(reasons())


def test_every_reason_is_upper_snake_case_of_at_most_63_characters() -> None:
    """google.rpc.ErrorInfo."""
    wrong = [one for one in ALL if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,61}[A-Z0-9]", one.name)]
    assert wrong == []


def test_a_reason_is_found_however_it_becomes_an_error() -> None:
    found = {(one.name, one.status) for one in ALL}
    assert ("PROFILE_NOT_GRANTED", "PERMISSION_DENIED") in found  # raised as it stands
    assert ("ORIG_MISSING", "INVALID_ARGUMENT") in found  # by a function that makes the error
    assert ("HSM_PIN_INCORRECT", "FAILED_PRECONDITION") in found  # by a table
    assert ("SIGNER_DOWN", "") in found  # an alarm


def test_what_raises_an_error_says_a_sentence() -> None:
    place = "kmsd/access.py"
    said = [one for one in ALL if one.place == place]
    assert (
        Reason(
            "TYPE_NOT_GRANTED",
            "PERMISSION_DENIED",
            place,
            "This caller was not granted PASSporTs of type ….",
        )
        in said
    )


def test_every_reason_is_documented_as_the_source_has_it() -> None:
    written = (SOURCE / "reasons.md").read_text()
    assert written == table(), "write it anew: python -m tests.reasons > kmsd/reasons.md"
