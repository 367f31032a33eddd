"""The Admin service where its caller or the HSM leaves it in the middle."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from kmsapi.v1 import admin_pb2 as pb
from kmsapi.v1 import admin_pb2_grpc

from kmsd import certs, overview
from kmsd.admin import SERVICE, Admin
from kmsd.listen import Listener
from kmsd.model import Credential, Retired
from kmsd.revoking import Revoking
from kmsd.settings import Configuration
from kmsd.store import Store
from tests.unit.test_enrollment import OUTCOMES, walk


class Keeper:
    """Remembers what was revoked."""

    def __init__(self) -> None:
        self.revocations: list[str] = []
        self.done = asyncio.Event()

    async def revoked(self, credential: Credential, _: object) -> Credential:
        self.revocations.append(credential.id)
        self.done.set()
        return credential


class Counterparts:
    """One STI-CA, which takes a revocation when it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()

    @asynccontextmanager
    async def issuer(self, *_: str) -> AsyncIterator[tuple[Any, None]]:
        yield self, None

    async def revoke(self, *_: object) -> None:
        self.asked.set()
        await self.let.wait()


@asynccontextmanager
async def served(folder: Path, admin: Admin) -> AsyncIterator[admin_pb2_grpc.AdminStub]:
    address = f"unix:{folder}/keeper.sock"
    listener = Listener([SERVICE], share_port=False)
    admin_pb2_grpc.add_AdminServicer_to_server(admin, listener.server)
    listener.bind(address, None)
    await listener.server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield admin_pb2_grpc.AdminStub(channel)
    finally:
        await listener.server.stop(None)


def an_admin(store: object, **parts: object) -> Admin:
    """An Admin with only the parts that a test needs."""
    needed = (
        *("keeper", "movers", "overview", "anchors", "revoking", "rollback", "rehearsal"),
        *("outlook", "counterparts"),
    )
    given: dict[str, Any] = {name: parts.get(name) for name in needed}
    configuration = cast(Configuration, parts.get("configuration"))
    return Admin(configuration, cast(Store, store), **given, clock=lambda: 1_800_000_000)


async def test_a_revocation_is_finished_when_its_caller_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certs, "leaf_der", lambda _: b"der")
    retired = walk(*OUTCOMES[:8])
    assert isinstance(retired.state, Retired)
    keeper, counterparts = Keeper(), Counterparts()

    class Found:
        def require_acting(self) -> None:
            pass

        def find(self, _: str) -> Credential:
            return retired

    parts: Any = (Found(), keeper, None, counterparts, lambda: 0)
    admin = an_admin(Found(), keeper=keeper, revoking=Revoking(*parts))
    async with served(tmp_path, admin) as stub:
        call: Any = stub.Revoke(pb.RevokeRequest(credential=retired.id, reason=4))
        waiting = asyncio.ensure_future(call.read())
        await counterparts.asked.wait()
        call.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert keeper.revocations == []
        counterparts.let.set()
        async with asyncio.timeout(5):
            await keeper.done.wait()
    assert keeper.revocations == [retired.id]


async def test_a_status_does_not_wait_for_an_hsm_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overview, "HSM_PATIENCE", 0.05)

    async def hangs(*_: object) -> None:
        await asyncio.Event().wait()

    class Configured:
        class hsm:
            token = "kmsd"

    nothing: Any = None
    given: Any = (Configured(), nothing, hangs, nothing, nothing, nothing, nothing, lambda: 0)
    status = await overview.Overview(*given)._hsm_status()
    assert not status.usable
    assert "has not answered" in status.trouble
