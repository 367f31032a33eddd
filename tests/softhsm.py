"""Throw-away SoftHSM tokens for tests, made by the script that operators use."""

import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec

from kmsd import settings

INIT_TOKEN = Path(__file__).parent.parent / "softhsm" / "init-token"


def make_token(folder: Path, label: str = "kmsd") -> settings.Hsm:
    """A new token in `folder`, as the [hsm] table of kmsd.toml that opens it.

    Its `environment` names the token's own SOFTHSM2_CONF; `pin` is the path of the PIN file.
    """
    made = subprocess.run(
        [INIT_TOKEN, folder, label],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        check=True,
        text=True,
    )
    return msgspec.convert(tomllib.loads(made.stdout)["hsm"], settings.Hsm)


def pin_of(hsm: settings.Hsm) -> str:
    """The user PIN of a token made by `make_token`."""
    return Path(hsm.pin).read_text().strip()
