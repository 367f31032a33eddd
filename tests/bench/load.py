"""What every kind of load is, and how it counts: little work while it runs, sums afterwards."""

import asyncio
import ctypes
import os
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from tests.bench.figures import Order, Setup, Tally, latency_class

clock = time.monotonic

ORIG: Final = "12155550112"
PAUSE: Final = 0.005
"""Seconds after a refusal; a caller who asks again at once is part of the overload."""


def dest(number: int) -> str:
    """A called number; others for other numbers."""
    return str(12155550113 + number % 1000)


class Load(Protocol):
    """One kind of load, against one target."""

    def __init__(self, setup: Setup) -> None: ...
    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def run(self, order: Order, count: "Count") -> None:
        """Makes load until `order.end`, and returns when all of it is answered."""


class Count:
    """What was answered in one round's window."""

    def __init__(self, order: Order) -> None:
        self._begin, self._end = order.begin, order.end
        self._signed: list[tuple[float, int]] = []
        self._refused: list[tuple[float, int]] = []
        self._failed = 0
        self._why = ""

    def signed(self, began: float, ended: float, number: int = 1) -> None:
        if self._begin <= ended < self._end:
            self._signed.append((ended - began, number))

    def refused(self, began: float, ended: float, number: int = 1) -> None:
        """Refused because there is too much to do."""
        if self._begin <= ended < self._end:
            self._refused.append((ended - began, number))

    def failed(self, why: object) -> None:
        """Anything else; counts whenever it happens."""
        self._failed += 1
        self._why = self._why or str(why)[:200]

    def tally(self) -> Tally:
        return Tally(
            signed=sum(number for _, number in self._signed),
            refused=sum(number for _, number in self._refused),
            failed=self._failed,
            why=self._why,
            latencies=_classes(self._signed),
            refusals=_classes(self._refused),
        )


async def closed_loop(order: Order, callers: int, call: Callable[[], Awaitable[None]]) -> None:
    """`callers` that each call again as soon as they are answered, until the round's end."""

    async def caller() -> None:
        while clock() < order.end:
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())


async def open_loop(order: Order, call: Callable[[float], Awaitable[None]]) -> None:
    """`order.rate` calls a second, come what may; each is told when it was due.

    Calls begin in bursts, a millisecond apart.
    """
    begun: set[asyncio.Task[None]] = set()
    due = start = clock()
    made = 0
    with _ticks(0.001) as tick:
        while due < order.end:
            now = await tick()
            while due < min(now, order.end):
                # Late by a tick is the clock's doing; by more, this process's, and that counts.
                due = now if now - due < 0.002 else due + 0.001
                for _ in range(int((due - start) * order.rate) - made):
                    task = asyncio.ensure_future(call(due))
                    begun.add(task)
                    task.add_done_callback(begun.discard)
                    made += 1
    if begun:
        await asyncio.wait(begun)


@contextmanager
def _ticks(seconds: float) -> Iterator[Callable[[], Awaitable[float]]]:
    """Something to await that ends at every tick, at once when one was missed.

    A timerfd: event loops round their own timers to a millisecond. Python has it from 3.13 on.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)  # 1: CLOCK_MONOTONIC
    nanoseconds = int(seconds * 1e9)
    if timer < 0 or libc.timerfd_settime(
        timer, 0, struct.pack("=4q", 0, nanoseconds, 0, nanoseconds), None
    ):
        raise OSError(ctypes.get_errno(), "no timerfd")
    loop = asyncio.get_running_loop()
    ticked = asyncio.Event()

    def ring() -> None:
        os.read(timer, 8)
        ticked.set()

    async def tick() -> float:
        await ticked.wait()
        ticked.clear()
        return clock()

    loop.add_reader(timer, ring)
    try:
        yield tick
    finally:
        loop.remove_reader(timer)
        os.close(timer)


def _classes(latencies: list[tuple[float, int]]) -> dict[int, int]:
    counted: Counter[int] = Counter()
    for seconds, number in latencies:
        counted[latency_class(seconds)] += number
    return dict(counted)
