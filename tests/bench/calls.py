"""Load as an authentication server makes it: many callers of `kmsd_client`, one signature each."""

import asyncio
import itertools

from kmsd_client import AsyncClient, Overloaded, SigningError, Tls

from tests.bench.figures import Order, Setup
from tests.bench.load import ORIG, PAUSE, Count, clock, closed_loop, dest, open_loop


class Calls:
    """`at_once` callers in the process, or `rate` calls a second."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._numbers = itertools.count()
        self._client: AsyncClient

    async def open(self) -> None:
        tls = Tls(*self._setup.tls) if self._setup.tls else None
        self._client = AsyncClient(self._setup.target, tls=tls, profile=self._setup.profiles[0])
        await self._client.sign_shaken(ORIG, dest(0), "A", timeout=20)

    async def close(self) -> None:
        await self._client.close()

    async def run(self, order: Order, count: Count) -> None:
        client, numbers = self._client, self._numbers

        async def call(began: float) -> None:
            try:
                await client.sign_shaken(ORIG, dest(next(numbers)), "A")
            except Overloaded as refused:
                count.refused(began, clock())
                if not order.rate:
                    await asyncio.sleep(refused.retry_after or PAUSE)
            except SigningError as error:
                count.failed(error)
            else:
                count.signed(began, clock())

        if order.rate:
            await open_loop(order, call)
        else:
            await closed_loop(order, order.at_once, lambda: call(clock()))
