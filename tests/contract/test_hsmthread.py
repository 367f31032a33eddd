"""The keeper's HSM: lent on one thread, opened when it can be, opened anew when it was lost."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from kmsd import settings
from kmsd.errors import Invalid, Unavailable
from kmsd.hsm import Hsm, Inventory, new_key_id
from kmsd.hsmthread import HsmThread

NOW = 1_800_000_000


@pytest.fixture
async def hsm(softhsm: settings.Hsm, tmp_path: Path) -> AsyncIterator[HsmThread]:
    thread = HsmThread(softhsm, tmp_path / "run")
    yield thread
    await thread.close()


async def test_it_is_opened_when_it_is_needed_and_lent_to_one_at_a_time(hsm: HsmThread) -> None:
    inside = []

    def look(hsm: Hsm) -> str:
        inside.append(threading.current_thread().name)
        assert len(inside) == 1
        time.sleep(0.01)
        inside.pop()
        return hsm.info.token

    found = await asyncio.gather(*(hsm(look) for _ in range(5)))
    assert set(found) == {"kmsd"}
    assert hsm.trouble is None


async def test_what_a_function_raises_comes_to_whoever_asked(hsm: HsmThread) -> None:
    with pytest.raises(Invalid) as refused:
        await hsm(Hsm.generate, "no id", "label", NOW)
    assert refused.value.reason == "HSM_KEY_ID_INVALID"
    assert await hsm(Hsm.inventory) == Inventory(frozenset(), 0)


async def test_an_absent_token_is_said_once_and_used_when_it_comes(
    hsm: HsmThread, tmp_path: Path
) -> None:
    tokens = tmp_path / "hsm" / "tokens"
    tokens.rename(tmp_path / "away")
    tokens.mkdir()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(Unavailable) as absent:
                await hsm(Hsm.inventory)
            assert absent.value.reason == "HSM_TOKEN_MISSING"
            assert hsm.trouble is absent.value
        tokens.rmdir()
        (tmp_path / "away").rename(tokens)
        await hsm(Hsm.inventory)
    assert hsm.trouble is None
    assert [entry["event"] for entry in logs] == ["hsm_not_usable", "hsm_open"]


async def test_a_lost_token_is_opened_anew_and_its_keys_are_still_there(
    hsm: HsmThread, tmp_path: Path
) -> None:
    key_id = new_key_id()
    birth = await hsm(Hsm.generate, key_id, "label", NOW)
    tokens = tmp_path / "hsm" / "tokens"
    tokens.rename(tmp_path / "away")
    with pytest.raises(Unavailable):
        await hsm(Hsm.sign, key_id, bytes(32))
    assert hsm.trouble is not None
    (tmp_path / "away").rename(tokens)
    assert await hsm(Hsm.public_key, key_id) == birth.public_key
    assert hsm.trouble is None


async def test_a_caller_who_goes_does_not_disturb_the_next(hsm: HsmThread) -> None:
    begun = threading.Event()

    def slow(hsm: Hsm) -> None:
        begun.set()
        time.sleep(0.1)

    going = asyncio.create_task(hsm(slow))
    await asyncio.to_thread(begun.wait, 10)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert await hsm(Hsm.inventory) == Inventory(frozenset(), 0)
