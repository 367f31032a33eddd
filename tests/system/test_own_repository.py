"""An STI-CR of one's own: what the keeper publishes, `kmsd repository` serves to every verifier."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kmsd.lab import Lab, running_lab
from tests.contract.tokens import read_identity
from tests.system import judges
from tests.system.key_room import KeyRoom
from tests.system.programs import free_port, program, until


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running_lab(tmp_path / "lab", spcs=["1234"], calm=True) as lab:
        yield lab


def test_a_profile_is_enrolled_through_kmsd_repository_as_soon_as_that_serves(
    tmp_path: Path, lab: Lab
) -> None:
    port, files = free_port(), lab.tls.server("repository")
    own = {
        "url": f"file://{tmp_path / 'chains'}",
        "public_url": f"https://localhost:{port}/",
        "listen": f"127.0.0.1:{port}",
        "certificate": str(files.certificate),
        "key": str(files.key),
    }
    room = KeyRoom(tmp_path / "room", lab, repository=own)
    with room.running():
        room.begun(verb="enroll")
        until("it waits", lambda: room.trouble().get("reason") == "X5U_UNREACHABLE")
        words = ("kmsd", "--config", str(room.config), "repository")
        with program(tmp_path / "repository.log", *words):
            until("it serves", lambda: _status(lab, own["public_url"]) == 404)
            active = room.enrolled()
            identity = room.sign()
            assert read_identity(identity).x5u == active["x5u"]
            assert active["x5u"] == f"{own['public_url']}{active['id']}.pem"
            served = judges.fetch(lab, active["x5u"])
            assert served.headers["Content-Type"] == "application/pem-certificate-chain"
            assert served.headers["Cache-Control"] == "public, max-age=604800, immutable"
            assert judges.openssl_says(lab, served.text, tmp_path) == "OK"
            assert judges.secsipidx_says(lab, identity, active["x5u"], tmp_path) == "ok"
            assert room.kmsctl("verify", identity).code == 0


def _status(lab: Lab, url: str) -> int:
    try:
        return judges.fetch(lab, url).status_code
    except httpx.TransportError:
        return 0
