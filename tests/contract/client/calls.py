"""What the client's tests ask for, and what signers answer them."""

import asyncio
import socket
from collections.abc import Callable

import grpc
from kmsd_client import Attest, Shaken

from tests.contract.software_claims import Refusal

CALL: tuple[str, str, Attest] = ("12155550112", "12155550113", "A")
GOOD = Shaken("12155550112", "12155550113", "A")
AWAY = Refusal(grpc.StatusCode.UNAVAILABLE, "HSM_AWAY", "The HSM is away. Try again.")
FULL = Refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "Send less.", {"limit": "9"}, retry_after=2
)
NO_GRANT = Refusal(
    grpc.StatusCode.PERMISSION_DENIED, "PROFILE_NOT_GRANTED", "Not yours.", {"profile": "acme"}
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for lives in gRPC
            await asyncio.sleep(0.01)
