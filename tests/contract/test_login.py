"""The latch: a PIN that was refused is not offered again, by whatever process of the host."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from kmsd import settings
from kmsd.errors import Misconfigured, Unavailable
from kmsd.login import one_try, open_hsm
from tests.softhsm import pin_of

WRONG = Misconfigured("HSM_PIN_INCORRECT", "The PIN is wrong.")


class Token:
    """Counts the tries."""

    def __init__(self, latch: Path, pin: str = "right") -> None:
        self.latch = latch
        self.pin = pin
        self.tries = 0

    def log_in(self, pin: str) -> None:
        with one_try(self.latch, pin):
            self.tries += 1
            if pin != self.pin:
                raise WRONG


@pytest.fixture
def token(tmp_path: Path) -> Token:
    return Token(tmp_path / "run" / "pin-refused")


def test_a_wrong_pin_is_tried_once(token: Token) -> None:
    with pytest.raises(Misconfigured, match="wrong"):
        token.log_in("guess")
    for _ in range(3):
        with pytest.raises(Misconfigured) as refused:
            token.log_in("guess")
        assert refused.value.reason == "HSM_PIN_REFUSED_BEFORE"
        assert str(token.latch) in refused.value.next_step
    assert token.tries == 1


def test_another_pin_is_tried_and_the_right_one_clears_the_latch(token: Token) -> None:
    for pin in ("guess", "other guess"):
        with pytest.raises(Misconfigured, match="wrong"):
            token.log_in(pin)
    token.log_in("right")
    token.pin = "changed"
    with pytest.raises(Misconfigured, match="wrong"):
        token.log_in("right")
    assert token.tries == 4


def test_removing_the_latch_allows_one_more_try(token: Token) -> None:
    with pytest.raises(Misconfigured, match="wrong"):
        token.log_in("guess")
    token.latch.unlink()
    token.pin = "guess"
    token.log_in("guess")


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("HSM_TOKEN_MISSING", "It is not there."),
        Misconfigured("HSM_MODULE_MISSING", "There is no such file."),
        KeyboardInterrupt(),
    ],
    ids=["absent token", "module", "interrupted"],
)
def test_what_says_nothing_of_the_pin_leaves_the_latch_as_it_is(
    token: Token, error: BaseException
) -> None:
    with pytest.raises(type(error)), one_try(token.latch, "right"):
        raise error
    token.log_in("right")
    with pytest.raises(Misconfigured, match="wrong"):
        token.log_in("guess")
    with pytest.raises(type(error)), one_try(token.latch, "right"):
        raise error
    with pytest.raises(Misconfigured) as refused:
        token.log_in("guess")
    assert refused.value.reason == "HSM_PIN_REFUSED_BEFORE"


def test_the_pin_is_not_in_the_latch(token: Token) -> None:
    with pytest.raises(Misconfigured):
        token.log_in("a secret that is long enough to be found")
    content = token.latch.read_bytes()
    assert any(content)
    assert b"secret" not in content
    assert not stat.S_IMODE(token.latch.stat().st_mode) & stat.S_IRWXO


def test_where_nothing_can_be_remembered_nothing_is_tried(
    token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Misconfigured, match="No space left") as refused:
        token.log_in("right")
    assert refused.value.reason == "RUN_FOLDER_UNUSABLE"
    assert token.tries == 0
    assert set(os.listdir("/proc/self/fd")) == before


PROCESS = """
import sys, time
from pathlib import Path
from kmsd.errors import Misconfigured
from kmsd.login import one_try
try:
    with one_try(Path(sys.argv[1]), "guess"):
        time.sleep(0.2)
        raise Misconfigured("HSM_PIN_INCORRECT", "The PIN is wrong.")
except Misconfigured as error:
    print(error.reason)
"""


def test_of_processes_that_start_together_one_tries(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, tmp_path / "latch"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = sorted(process.communicate(timeout=30)[0].strip() for process in processes)
    assert said == ["HSM_PIN_INCORRECT", "HSM_PIN_REFUSED_BEFORE", "HSM_PIN_REFUSED_BEFORE"]


def test_a_real_token_is_opened_and_its_wrong_pin_tried_once(
    softhsm: settings.Hsm, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    wrong = tmp_path / "wrong-pin"
    wrong.touch(mode=0o600)
    wrong.write_text("not the pin\n")
    bad = replace(softhsm, pin=str(wrong))
    reasons = []
    for _ in range(2):
        with pytest.raises(Misconfigured) as refused:
            open_hsm(bad, run)
        reasons.append(refused.value.reason)
        assert "not the pin" not in str(refused.value)
    assert reasons == ["HSM_PIN_INCORRECT", "HSM_PIN_REFUSED_BEFORE"]
    with open_hsm(softhsm, run) as hsm:
        assert hsm.info.token == softhsm.token
    assert pin_of(softhsm).encode() not in (run / "pin-refused").read_bytes()
