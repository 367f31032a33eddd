"""The real counterparts that the contract tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd import settings
from tests.postgres import Postgres, postgres
from tests.softhsm import make_token


@pytest.fixture
def softhsm(tmp_path: Path) -> settings.Hsm:
    """A new SoftHSM token of this test's own."""
    return make_token(tmp_path / "hsm")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL that the tests share, each with a database of its own; never stopped."""
    with postgres() as server:
        yield server
