"""Acting and standing by: of the keepers on one store, one acts on the HSM's token.

Who acts, and that nobody else writes, is the store's promise (`store.election`). Here is what
the process makes of it: it asks for the seat until it has it, acts, asks every moment whether it
still has it, stops at once when it has not, and begins anew. Time is measured by this host alone:
it gives up (PATIENCE) before the database gives its seat away (`store.postgres`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import NoReturn, TypeVar

import structlog

from kmsd.errors import KmsdError, Misconfigured, Precondition, Unavailable
from kmsd.store import Store, Term

ASK_EVERY = 1.0
"""Seconds between two tries for a seat that another keeper has."""
LONGEST_PAUSE = 15.0
"""Seconds between two tries at a store that cannot be used, at most."""
BEAT = 2.0
PATIENCE = 8.0
"""Seconds without an answer of the database after which the seat counts as lost."""

R = TypeVar("R")

log = structlog.get_logger()


class Standby:
    """One keeper's place among those on its store.

    trouble: why it does not act now; None while it does.
    """

    def __init__(self, store: Store, token: str) -> None:
        self._store = store
        self._token = token
        self._seat: AbstractContextManager[Term] | None = None
        self.trouble: KmsdError | None = None
        # Its own thread: that others wait for a dead database must not end a term.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="term")

    @property
    def waits(self) -> bool:
        """Whether another keeper acts, as it should be."""
        return isinstance(self.trouble, Precondition)

    async def first_try(self) -> None:
        """Raises what waiting does not heal: Misconfigured, or Precondition
        KEEPER_ALREADY_RUNNING on a store that is for one keeper."""
        await self._try()
        match self.trouble:
            case Misconfigured():
                raise self.trouble
            case Precondition() if not self._store.shared:
                raise self.trouble

    async def run(
        self, act: Callable[[], Awaitable[None]], follow: Callable[[], Awaitable[None]]
    ) -> NoReturn:
        """Until cancelled: runs `act` while this keeper acts, cancelling it when its term is
        over, and calls `follow` at every try while it does not."""
        failures = 0
        while True:
            if self._seat is None:
                await self._try()
            if self._seat is not None:
                failures = 0
                try:
                    await self._term(act)
                finally:
                    await self._leave()
                continue
            await self._follow(follow)
            failures = 0 if self.waits else failures + 1
            await asyncio.sleep(min(ASK_EVERY * 2.0 ** max(0, failures - 1), LONGEST_PAUSE))

    async def close(self) -> None:
        """Leaves the seat to others."""
        await self._leave()
        self._thread.shutdown(wait=False)

    async def _try(self) -> None:
        seat = self._store.acting(self._token)
        try:
            term = await self._in_thread(seat.__enter__)
        except KmsdError as refusal:
            if self.trouble is None or self.trouble.message != refusal.message:
                line = log.info if isinstance(refusal, Precondition) else log.error
                line("standing_by", reason=refusal.reason, message=str(refusal))
            self.trouble = refusal
            return
        self._seat, self.trouble = seat, None
        log.info("acting", term=term.generation)

    async def _leave(self) -> None:
        if self._seat is not None:
            seat, self._seat = self._seat, None
            await self._in_thread(lambda: seat.__exit__(None, None, None))

    async def _term(self, act: Callable[[], Awaitable[None]]) -> None:
        acting = asyncio.ensure_future(act())
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait({acting, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (acting, watching):
                task.cancel()
            await asyncio.gather(acting, watching, return_exceptions=True)
        if not acting.cancelled():
            acting.result()  # a defect: it ends the process

    async def _watch(self) -> None:
        """Returns when the term is over. A seat that cannot be lost is not watched."""
        if not self._store.shared:
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        answered = loop.time()
        trouble: KmsdError = _silent()
        while loop.time() - answered < PATIENCE:
            await asyncio.sleep(BEAT)
            try:
                async with asyncio.timeout(answered + PATIENCE - loop.time()):
                    await self._in_thread(self._store.check_acting)
            except TimeoutError:
                break
            except KmsdError as error:
                trouble = error
                if not self._store.acts:
                    break
            else:
                answered, trouble = loop.time(), _silent()
        self._store.resign()
        self.trouble = trouble
        log.error("acting_no_more", reason=trouble.reason, message=str(trouble))

    async def _follow(self, follow: Callable[[], Awaitable[None]]) -> None:
        try:
            await follow()
        except KmsdError as error:
            if self.waits:  # else it has been said what is wrong with the store
                log.warning("not_followed", reason=error.reason)

    async def _in_thread(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _silent() -> Unavailable:
    return Unavailable(
        "STORE_SILENT",
        f"The database has not answered for {PATIENCE:.0f} s.",
        next_step="This keeper changes nothing until it acts again, which it tries by itself.",
    )
