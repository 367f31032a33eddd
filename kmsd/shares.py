"""A thing that many may use at the same time, or one alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Shares:
    """Of one thing. Who holds a share does not ask for another one."""

    def __init__(self) -> None:
        self._users = 0
        self._free = asyncio.Event()
        self._free.set()
        self._door = asyncio.Lock()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """One of many; waits while somebody is alone with it, or wants to be."""
        async with self._door:
            self._users += 1
            self._free.clear()
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self._free.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Alone with it; waits until everybody else has let go."""
        async with self._door:
            await self._free.wait()
            yield
