"""When a PIN is tried, on tokens that are not there."""

from types import SimpleNamespace
from typing import Any

import pkcs11
import pytest

from kmsd import errors
from kmsd.hsm import login


@pytest.mark.parametrize(
    ("flag", "reason"),
    [("USER_PIN_LOCKED", "HSM_PIN_LOCKED"), ("USER_PIN_FINAL_TRY", "HSM_PIN_FINAL_TRY")],
)
def test_no_pin_is_tried_that_could_lock_the_token(flag: str, reason: str) -> None:
    token: Any = SimpleNamespace(flags=pkcs11.TokenFlag[flag], label="kmsd")  # has no open()
    with pytest.raises(errors.Misconfigured) as caught:
        login.log_in(token, "1234")
    assert caught.value.reason == reason


def test_a_login_left_from_elsewhere_is_used() -> None:
    opens: list[dict[str, str]] = []

    def open_(**arguments: str) -> str:
        opens.append(arguments)
        if arguments:
            raise pkcs11.UserAlreadyLoggedIn
        return "session"

    token: Any = SimpleNamespace(flags=pkcs11.TokenFlag(0), label="kmsd", open=open_)
    session: object = login.log_in(token, "1234")
    assert session == "session"
    assert opens == [{"user_pin": "1234"}, {}]
