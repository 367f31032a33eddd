"""softhsm/init-token: a token for trying out, whose PIN nobody else sees."""

import stat
import subprocess
from pathlib import Path

import pytest

from kmsd import hsm
from tests.softhsm import INIT_TOKEN, make_token, pin_of


def test_init_token_shows_its_secrets_to_nobody_else(tmp_path: Path) -> None:
    made = make_token(tmp_path / "hsm")
    for name in ("pin", "so-pin", "softhsm2.conf"):
        mode = stat.S_IMODE((tmp_path / "hsm" / name).stat().st_mode)
        assert mode == stat.S_IRUSR | stat.S_IWUSR
    assert stat.S_IMODE((tmp_path / "hsm").stat().st_mode) == stat.S_IRWXU
    assert len(pin_of(made)) == 32


def test_init_token_leaves_a_token_that_is_there(tmp_path: Path) -> None:
    made = make_token(tmp_path / "hsm")
    key_id = hsm.new_key_id()
    with hsm.Hsm.open(made, pin_of(made)) as device:
        device.generate(key_id, "", 1)
    assert make_token(tmp_path / "hsm") == made
    with hsm.Hsm.open(made, pin_of(made)) as device:
        assert device.inventory() == hsm.Inventory(frozenset({key_id}), 0)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [([], 2), ([""], 2), (["a", "b", "c", "d"], 2), (["a", "kmsd", "/nowhere/module.so"], 1)],
)
def test_init_token_refuses_what_it_cannot_do(
    tmp_path: Path, arguments: list[str], status: int
) -> None:
    done = subprocess.run([INIT_TOKEN, *arguments], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == status
    assert done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", ["x" * 33, "\u00e4" * 17])
def test_a_label_longer_than_a_token_holds_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        make_token(tmp_path / "hsm", label)
    assert list((tmp_path / "hsm" / "tokens").iterdir()) == []
