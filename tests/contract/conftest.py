"""The real counterparts that the contract tests share."""

from pathlib import Path

import pytest

from kmsd import settings
from tests.softhsm import make_token


@pytest.fixture
def softhsm(tmp_path: Path) -> settings.Hsm:
    """A new SoftHSM token of this test's own."""
    return make_token(tmp_path / "hsm")
