"""Lanes and what is live on them: the same on the fake and on a real token."""

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from kmsd import lane, lanes
from kmsd import live as live_module
from kmsd.errors import Exhausted, KmsdError, Late, NotFound, Precondition, Unavailable
from kmsd.hsm import Hsm, new_key_id
from kmsd.lane import Handles
from kmsd.lanes import Lanes
from kmsd.live import LOST, Change, End, Live
from kmsd.ring import Delta, Entry, Snapshot
from tests.contract.fake_hsm import FakeHandle, FakeSession
from tests.contract.hsm_bench import (
    DIGEST,
    NOW,
    FakeOnBench,
    SoftHsmOnBench,
    Token,
    assert_verifies,
)

PATIENT = 60.0


@pytest.fixture(params=["fake", "softhsm"])
def token(request: pytest.FixtureRequest, tmp_path: Path) -> Token:
    return FakeOnBench() if request.param == "fake" else SoftHsmOnBench(tmp_path / "hsm")


@pytest.fixture
def fake() -> FakeOnBench:
    return FakeOnBench()


class Bench:
    """Lanes on a token, with what `on_loss` was told."""

    def __init__(self, token: Token, threads: int, longest_wait: float) -> None:
        self.token = token
        self.hsm = cast(Hsm, token.open())
        self.hsm.max_threads = threads
        self.losses: list[KmsdError] = []
        self.lanes = Lanes(self.hsm, threads, longest_wait=longest_wait, on_loss=self.losses.append)

    def entry(self, profile: str = "acme", x5u: str = "https://cr.example.org/1.pem") -> Entry:
        """A keyring entry with a new key."""
        birth = self.hsm.generate(new_key_id(), "test", NOW)
        return Entry(
            profile=profile,
            spc="1234",
            credential="0" * 16,
            key_id=birth.key_id,
            spki_sha256=sha256(birth.public_key).hexdigest(),
            x5u=x5u,
            not_before=NOW,
            not_after=NOW + 1000,
        )


@asynccontextmanager
async def bench(
    token: Token, threads: int = 1, *, longest_wait: float = PATIENT
) -> AsyncIterator[Bench]:
    made = Bench(token, threads, longest_wait)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.lanes.close)
        made.hsm.close()


class Held:
    """Signing on fakes stops at each signature until `go`. `started`: how many came so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = 0
        self._came = threading.Semaphore(0)
        self._free = threading.Event()
        sign = FakeSession.sign

        def held(session: FakeSession, handle: FakeHandle, digest: bytes) -> bytes:
            self.started += 1
            self._came.release()
            self._free.wait(20)
            return sign(session, handle, digest)

        monkeypatch.setattr(FakeSession, "sign", held)

    def go(self) -> None:
        self._free.set()

    async def came(self, times: int = 1) -> None:
        """Waits until this many more signatures have been begun."""
        for _ in range(times):
            assert await asyncio.to_thread(self._came.acquire, timeout=20)


@pytest.mark.parametrize("threads", [1, 3])
async def test_a_frame_comes_back_whole_and_in_order(token: Token, threads: int) -> None:
    async with bench(token, threads) as on:
        entry = on.entry()
        (key,) = await on.lanes.load([entry])
        assert not isinstance(key, KmsdError)
        public_key = on.hsm.public_key(entry.key_id)
        assert public_key is not None
        for size in (1, 2, 7):
            signatures = await on.lanes.sign(key, [DIGEST] * size)
            assert len(signatures) == size
            for signature in signatures:
                assert_verifies(public_key, signature)


async def test_what_cannot_be_signed_with_is_told_entry_by_entry(token: Token) -> None:
    async with bench(token, 2) as on:
        good = on.entry()
        absent = replace(good, key_id=new_key_id())
        other = replace(good, spki_sha256="00" * 32)
        found = await on.lanes.load([absent, good, other])
        assert isinstance(found[0], NotFound)
        assert isinstance(found[1], tuple)
        assert isinstance(found[2], Precondition)
        assert on.losses == []


async def test_a_lost_hsm_is_told_once_whoever_meets_it(token: Token) -> None:
    async with bench(token, 2) as on:
        entry = on.entry()
        (key,) = await on.lanes.load([entry])
        assert not isinstance(key, KmsdError)
        token.unplug()
        for _ in range(3):
            with pytest.raises(Unavailable):
                await on.lanes.sign(key, [DIGEST] * 2)
        (again,) = await on.lanes.load([replace(entry, key_id=new_key_id())])
        assert isinstance(again, Unavailable)
        assert len(on.losses) == 1


async def test_a_token_that_is_gone_when_keys_are_loaded_is_a_lost_hsm(token: Token) -> None:
    async with bench(token) as on:
        entry = on.entry()
        token.unplug()
        (found,) = await on.lanes.load([entry])
        assert isinstance(found, Unavailable)
        assert on.losses == [found]


async def test_two_frames_are_two_lanes_work(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with bench(fake, 2) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        frames = [on.lanes.sign(key, [DIGEST]) for _ in range(2)]
        await held.came(2)  # both lanes are at it: none waits behind the other
        held.go()
        await asyncio.gather(*frames)


async def test_what_would_wait_too_long_is_refused_at_once(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(fake, longest_wait=0.0) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        await on.lanes.sign(key, [DIGEST])  # from now on the lane knows its pace
        held = Held(monkeypatch)
        first = on.lanes.sign(key, [DIGEST])
        await held.came()
        with pytest.raises(Exhausted) as refused:
            on.lanes.admit()
        assert refused.value.reason == "OVERLOADED"
        assert refused.value.retry_after > 0
        held.go()
        assert len(await first) == 1
        assert len(await on.lanes.sign(key, [DIGEST])) == 1
        assert on.losses == []


async def test_a_frame_whose_caller_has_gone_is_not_signed(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(fake) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        held = Held(monkeypatch)
        first = on.lanes.sign(key, [DIGEST])
        await held.came()
        late = on.lanes.sign(key, [DIGEST] * 50)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        held.go()
        await first
        await on.lanes.sign(key, [DIGEST])
        assert held.started == 2


async def test_a_frame_whose_deadline_passes_while_it_waits_is_not_signed(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(fake) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        held = Held(monkeypatch)
        first = on.lanes.sign(key, [DIGEST])
        await held.came()
        late = on.lanes.sign(key, [DIGEST] * 3, time.monotonic())
        patient = on.lanes.sign(key, [DIGEST], time.monotonic() + 60)
        held.go()
        with pytest.raises(Late) as told:
            await late
        assert told.value.reason == "DEADLINE_PASSED"
        assert len(await first) == len(await patient) == 1
        assert held.started == 2
        assert on.losses == []


async def test_every_frame_comes_back_while_lanes_race_for_the_pieces(token: Token) -> None:
    async with bench(token, 8) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for _ in range(100):
                frames = [on.lanes.sign(key, [DIGEST] * 5) for _ in range(4)]
                async with asyncio.timeout(10):
                    assert [len(await frame) for frame in frames] == [5] * 4
        finally:
            sys.setswitchinterval(interval)
        await asyncio.sleep(0)  # the callbacks of the last
        assert on.lanes.waiting == 0


async def test_a_lone_signature_does_not_wait_for_a_hundred_keys_to_be_looked_for(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, loaded, begun = FakeSession.load, list[str](), threading.Event()

    def load(session: FakeSession, key_id: str, spki_sha256: str) -> FakeHandle:
        begun.set()
        time.sleep(0.01)
        loaded.append(key_id)
        return real(session, key_id, spki_sha256)

    async with bench(fake) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        monkeypatch.setattr(FakeSession, "load", load)
        entries = [on.entry(f"profile-{number}") for number in range(100)]
        loading = asyncio.create_task(on.lanes.load(entries))
        await asyncio.to_thread(begun.wait, 20)
        signatures = [await on.lanes.sign(key, [DIGEST]) for _ in range(3)]
        assert len(signatures) == 3
        assert len(loaded) < 50  # each waited for one search or two
        assert on.lanes.pace() < 0.01  # which is no part of what a signature takes
        await loading
        assert len(loaded) == 100


async def test_an_hsm_that_hangs_is_lost_and_whoever_waits_is_told(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "CLOSING", 0.05)
    async with bench(fake) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        held = Held(monkeypatch)
        frames = [on.lanes.sign(key, [DIGEST]) for _ in range(2)]
        await held.came()
        on.lanes.watch(100.0)
        on.lanes.watch(100.0 + lanes.SILENCE)
        assert on.losses == []
        on.lanes.watch(100.1 + lanes.SILENCE)
        for frame in frames:
            with pytest.raises(Unavailable) as told:
                await frame
            assert told.value.reason == "HSM_SILENT"
        assert [loss.reason for loss in on.losses] == ["HSM_SILENT"]
        assert not await asyncio.to_thread(on.lanes.close)
        held.go()
        monkeypatch.undo()


async def test_a_key_that_many_profiles_share_is_looked_for_once(token: Token) -> None:
    async with bench(token, 2) as on:
        entry = on.entry()
        shared = [replace(entry, profile=f"profile-{number}") for number in range(50)]
        loaded = await on.lanes.load([*shared, on.entry()])
        assert (
            len({id(handles[0]) for handles in loaded if not isinstance(handles, KmsdError)}) == 2
        )
        (signature,) = await on.lanes.sign(cast(Handles, loaded[49]), [DIGEST])
        assert len(signature) == 64


async def test_an_hsm_that_is_idle_or_slow_is_not_lost(fake: FakeOnBench) -> None:
    async with bench(fake) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        for hour in range(3):
            on.lanes.watch(hour * 3600.0)
            await on.lanes.sign(key, [DIGEST])
        assert on.losses == []


async def test_closing_waits_for_the_frame_in_work(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with bench(fake) as on:
        (key,) = await on.lanes.load([on.entry()])
        assert not isinstance(key, KmsdError)
        frame = on.lanes.sign(key, [DIGEST] * 3)
        await held.came()
        closing = asyncio.create_task(asyncio.to_thread(on.lanes.close))
        await asyncio.sleep(0.05)
        assert not closing.done()
        held.go()
        assert len(await frame) == 3
        await closing
        on.lanes = Lanes(on.hsm, 1, longest_wait=0, on_loss=on.losses.append)


def test_lanes_that_cannot_all_be_opened_leave_none_open(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    hsm = fake.open()
    hsm.max_threads = 3
    sessions: list[FakeSession] = []
    closed: list[FakeSession] = []

    def session() -> FakeSession:
        if len(sessions) == 2:
            raise Unavailable("HSM_LOST", "It is gone.")
        sessions.append(FakeSession(hsm))
        return sessions[-1]

    monkeypatch.setattr(hsm, "session", session)
    monkeypatch.setattr(FakeSession, "close", lambda one: closed.append(one))
    with pytest.raises(Unavailable):
        Lanes(cast(Hsm, hsm), 3, longest_wait=1, on_loss=print)
    assert closed == sessions


# What is live on the lanes.


async def test_a_switch_replaces_adds_and_withdraws_together(token: Token) -> None:
    async with bench(token) as on:
        live = Live(on.lanes)
        a, b, c = on.entry("a"), on.entry("b"), on.entry("c")
        await live.follow(Snapshot(3, (a, b)))
        assert (live.epoch, len(live), live.key("a").entry) == (3, 2, a)
        new = on.entry("b", "https://cr.example.org/2.pem")
        await live.follow([Delta(4, (new, c), ("a",))])
        assert live.epoch == 4
        assert {entry.profile: entry for entry in live.entries()} == {"b": new, "c": c}
        with pytest.raises(NotFound) as refused:
            live.key("a")
        assert refused.value.reason == "PROFILE_NOT_ACTIVE"


async def test_what_a_snapshot_does_not_name_is_gone(token: Token) -> None:
    async with bench(token) as on:
        live = Live(on.lanes)
        a, lost = on.entry("a"), replace(on.entry("b"), key_id=new_key_id())
        await live.follow(Snapshot(1, (a, lost)))
        assert set(live.trouble) == {"b"}
        await live.follow(Snapshot(9))
        assert (len(live), live.trouble, live.epoch) == (0, {}, 9)


async def test_a_missing_key_keeps_the_one_that_works_and_is_looked_for(token: Token) -> None:
    async with bench(token) as on:
        live = Live(on.lanes)
        good = on.entry("a")
        await live.follow(Snapshot(1, (good,)))
        birth_to_come = new_key_id()
        await live.follow(
            [Delta(2, (replace(good, key_id=birth_to_come, x5u="https://x.example/2.pem"),))]
        )
        assert live.epoch == 2
        assert live.key("a").entry == good
        assert live.trouble["a"].reason == "HSM_KEY_ABSENT"
        await live.look_again()
        assert live.key("a").entry == good
        made = on.hsm.generate(birth_to_come, "late", NOW)
        await live.look_again()
        assert live.trouble["a"].reason == "HSM_KEY_MISMATCH"
        spki = sha256(made.public_key).hexdigest()
        await live.follow([Delta(3, (replace(good, key_id=birth_to_come, spki_sha256=spki),))])
        assert live.trouble == {}
        assert live.key("a").entry.key_id == birth_to_come


async def test_a_key_that_comes_late_is_signed_with_as_soon_as_it_is_there(token: Token) -> None:
    async with bench(token) as on:
        live = Live(on.lanes)
        entry = on.entry("a")
        public_key = on.hsm.public_key(entry.key_id)
        assert public_key is not None
        other = replace(entry, spki_sha256="00" * 32)
        with live.watch() as changes:
            await live.follow(Snapshot(1, (other,)))
            assert changes.get_nowait() == Change(1, "a", other.public())
            assert live.coming() == [other.public()]
            await live.follow([Delta(2, (entry,))])
            assert changes.get_nowait() == Change(2, "a", entry)


async def test_going_back_to_the_entry_in_use_ends_the_trouble(token: Token) -> None:
    async with bench(token) as on:
        live = Live(on.lanes)
        good = on.entry("a")
        await live.follow(Snapshot(1, (good,)))
        await live.follow([Delta(2, (replace(good, key_id=new_key_id()),))])
        assert live.trouble
        await live.follow([Delta(3, (good,))])
        assert live.trouble == {}
        assert live.key("a").entry == good


async def test_an_x5u_that_cannot_stand_in_a_header_is_trouble_of_its_profile_alone(
    token: Token,
) -> None:
    async with bench(token) as on:
        live = Live(on.lanes)
        good = on.entry("good")
        await live.follow(Snapshot(1, (on.entry("bad", "http://\x00"), good)))
        assert set(live.trouble) == {"bad"}
        assert live.key("good").entry == good


async def test_keys_nothing_signs_with_any_more_are_not_kept(fake: FakeOnBench) -> None:
    async with bench(fake) as on:
        live = Live(on.lanes)
        await live.follow(Snapshot(1, (on.entry("a"),)))
        frame = live.key("a")
        handle = weakref.ref(frame.handles[0])
        await live.follow([Delta(2, (on.entry("a"),))])
        assert handle() is not None  # a frame on its way still has it
        assert len(await on.lanes.sign(frame.handles, [DIGEST])) == 1
        del frame
        await on.lanes.sign(live.key("a").handles, [DIGEST])  # the lane has other things in mind
        gc.collect()
        assert handle() is None


async def test_a_watcher_sees_every_change_in_order(token: Token) -> None:
    async with bench(token) as on:
        live = Live(on.lanes)
        a, b = on.entry("a"), on.entry("b")
        with live.watch() as changes:
            await live.follow(Snapshot(1, (a,)))
            await live.follow([Delta(2, (b,)), Delta(3, (), ("a", "never-there"))])
        seen = [changes.get_nowait() for _ in range(changes.qsize())]
        assert seen == [Change(1, "a", a), Change(2, "b", b), Change(3, "a", End.WITHDRAWN)]
        await live.follow([Delta(4, (a,))])
        assert changes.empty()


async def test_what_is_announced_is_passed_on_and_not_signed_with(fake: FakeOnBench) -> None:
    async with bench(fake) as on:
        live = Live(on.lanes)
        now = on.entry("a")
        soon, later = (replace(now, credential=digit * 16).public() for digit in "23")
        await live.follow(Snapshot(1, (now,)))
        with live.watch() as changes:
            await live.follow([Delta(1, coming=(soon,), note=1), Delta(1, coming=(soon,), note=2)])
            assert (live.coming(), live.entries(), live.epoch) == ([soon], [now], 1)
            await live.follow([Delta(1, coming=(later,), note=3)])
            await live.follow([Delta(1, called_off=("a", "never-there"), note=4)])
            assert live.coming() == []
        seen = [changes.get_nowait() for _ in range(changes.qsize())]
        assert seen == [Change(1, "a", news) for news in (soon, later, End.CALLED_OFF)]


async def test_what_was_announced_and_is_signed_with_is_not_called_off(fake: FakeOnBench) -> None:
    async with bench(fake) as on:
        live = Live(on.lanes)
        now = on.entry("a")
        then = replace(now, credential="2" * 16)
        await live.follow(Snapshot(1, (now,), (then.public(),)))
        with live.watch() as changes:
            await live.follow([Delta(2, (then,))])
        assert [changes.get_nowait() for _ in range(changes.qsize())] == [Change(2, "a", then)]
        assert live.coming() == []


async def test_what_is_missed_is_coming_until_its_key_is_there_or_it_is_taken_back(
    fake: FakeOnBench,
) -> None:
    async with bench(fake) as on:
        live = Live(on.lanes)
        now = on.entry("a")
        then = replace(now, credential="2" * 16, spki_sha256="00" * 32)
        await live.follow(Snapshot(1, (now,), (then.public(),)))
        with live.watch() as changes:
            await live.follow([Delta(2, (then,))])
            assert (live.coming(), changes.empty()) == ([then.public()], True)
            await live.follow([Delta(3, (now,))])
        assert [changes.get_nowait() for _ in range(changes.qsize())] == [
            Change(3, "a", End.CALLED_OFF)
        ]
        assert live.trouble == {}


async def test_a_snapshot_takes_back_what_it_does_not_announce(fake: FakeOnBench) -> None:
    async with bench(fake) as on:
        live = Live(on.lanes)
        now = on.entry("a")
        soon = replace(now, credential="2" * 16).public()
        await live.follow(Snapshot(1, (now,), (soon,)))
        with live.watch() as changes:
            await live.follow(Snapshot(2, (now,)))
        assert changes.get_nowait() == Change(2, "a", End.CALLED_OFF)


async def test_a_watcher_that_does_not_read_is_cut_off(
    fake: FakeOnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "WATCHER_BACKLOG", 2)
    async with bench(fake) as on:
        live = Live(on.lanes)
        entries = [on.entry(name) for name in "abcd"]
        with live.watch() as sleepy, live.watch() as awake:
            for epoch, entry in enumerate(entries, start=1):
                await live.follow([Delta(epoch, (entry,))])
                assert awake.get_nowait() == Change(epoch, entry.profile, entry)
            changes = [sleepy.get_nowait() for _ in range(sleepy.qsize())]
        assert changes[-1] is LOST
        assert len(changes) == 2
