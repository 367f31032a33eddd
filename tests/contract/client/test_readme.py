"""The programs in the client's README run as they stand there."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.software_signer import SoftwareSigner, served, signer_for
from tests.contract.tls_parts import make_parts
from tests.contract.tokens import read_identity, verify_signature

README = Path(__file__).parents[3] / "client" / "README.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), flags=re.M | re.S)


@pytest.fixture
def signer() -> SoftwareSigner:
    return signer_for(["acme"])


@pytest.fixture
async def environment(signer: SoftwareSigner, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """What the programs read from their environment."""
    parts = make_parts()
    names = {"CA": parts.ca, "CERTIFICATE": parts.caller_certificate, "KEY": parts.caller_key}
    for name, pem in names.items():
        (tmp_path / name).write_bytes(pem)
    async with served(signer, parts) as (target, _):
        paths = {f"KMSD_{name}": str(tmp_path / name) for name in names}
        yield os.environ | paths | {"KMSD_SIGNERS": f"{target},{target}"}


async def output(program: str, environment: dict[str, str]) -> list[str]:
    """The lines a program prints; it must end well and complain of nothing."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", program),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, stderr.decode()) == (0, "")
    return stdout.decode().splitlines()


async def verifies(line: str, signer: SoftwareSigner) -> bool:
    token = read_identity(line.removeprefix("Identity: "))
    verify_signature(token, await signer.public_key(token.x5u))
    return token.ppt == "shaken"


async def test_the_authentication_server_signs_and_survives_a_refusal(
    environment: dict[str, str], signer: SoftwareSigner
) -> None:
    signed, identity, refused = await output(PROGRAMS[0], environment)
    assert re.fullmatch(r"signed, origid [0-9a-f-]{36}", signed)
    assert await verifies(identity, signer)
    assert refused == "not signed, TN_INVALID: The orig is no number."


async def test_the_program_on_threads_signs_a_frame_with_a_bad_item(
    environment: dict[str, str], signer: SoftwareSigner
) -> None:
    first, second, bad = await output(PROGRAMS[1], environment)
    assert await verifies(first, signer)
    assert await verifies(second, signer)
    assert bad == "TN_INVALID {'field': 'dest'}"


async def test_the_watching_program_hears_of_the_credential(environment: dict[str, str]) -> None:
    assert await output(PROGRAMS[2], environment) == [
        "acme signs with https://cr.example.net/acme.pem"
    ]


def test_every_program_of_the_readme_is_run_here() -> None:
    assert len(PROGRAMS) == 3
