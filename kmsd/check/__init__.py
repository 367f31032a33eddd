"""`kmsd check`: looks at everything the configuration leads to, before it hurts.

Each check stands alone: none stops another, none takes longer than LIMIT, and none changes
anything (a probe file is removed again; the STI-PA sees a login and a logout). Printing is
`cli`'s business.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import ParamSpec, TypeVar, cast

from kmsd.check import files, hsm, peers, records
from kmsd.check.finding import Finding, Level, error, failed, ok, warning
from kmsd.config import InvalidConfiguration, load, warnings
from kmsd.errors import KmsdError
from kmsd.settings import Configuration

__all__ = ["Finding", "Level", "check"]

LIMIT = 45.0
"""Seconds for one check."""

Findings = Iterable[Finding]
P = ParamSpec("P")
R = TypeVar("R")


async def check(
    path: str | os.PathLike[str],
    *,
    clock: Callable[[], float] = time.time,
    limit: float = LIMIT,
) -> AsyncIterator[Finding]:
    """Findings about the configuration at `path` and all it leads to, as they come.

    Checks run side by side; their findings come in one order. When the configuration itself
    cannot be used there is nothing else to look at. clock: seconds UTC.
    """
    try:
        configuration = await _aside(load, path)
    except InvalidConfiguration as invalid:
        for problem in invalid.problems:
            yield error("configuration", problem)
        return
    except KmsdError as unreadable:
        yield failed("configuration", unreadable)
        return
    yield ok("configuration", f"{os.fspath(path)} can be used.")
    for line in warnings(configuration):
        yield warning("configuration", line)
    tasks = [
        asyncio.create_task(_bounded(what, work, limit))
        for what, work in _checks(configuration, clock)
    ]
    try:
        for task in tasks:
            for finding in await task:
                yield finding
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _checks(
    configuration: Configuration, clock: Callable[[], float]
) -> list[tuple[str, Callable[[], Awaitable[Findings]]]]:
    now = int(clock())
    return [
        ("clock", partial(peers.clock, configuration, clock)),
        ("secrets", partial(_aside, files.secrets, configuration)),
        ("folders", partial(_aside, files.folders, configuration)),
        ("tls", partial(_aside, files.tls, configuration, now)),
        ("store", partial(_aside, records.store, configuration, now)),
        ("keyring", partial(_aside, records.keyring, configuration)),
        ("hsm", partial(_hsm, configuration)),
        *(
            (f"authority {name}", partial(peers.authority, name, configuration, now))
            for name in configuration.authorities
        ),
        *(
            (f"issuer {name}", partial(peers.issuer, name, settings))
            for name, settings in configuration.issuers.items()
        ),
        ("repository", partial(_repository, configuration)),
    ]


async def _hsm(configuration: Configuration) -> Findings:
    keys = await _aside(records.keys, configuration)
    return await hsm.token(configuration, keys)


async def _repository(configuration: Configuration) -> Findings:
    written = await _aside(files.repository, configuration)
    public = await _aside(records.public_chains, configuration)
    return (*written, *await peers.repository(configuration, public))


async def _bounded(
    what: str, work: Callable[[], Awaitable[Findings]], limit: float
) -> tuple[Finding, ...]:
    try:
        async with asyncio.timeout(limit):
            return tuple(await work())
    except KmsdError as refusal:
        return (failed(what, refusal),)
    except TimeoutError:
        return (error(what, f"It did not answer within {limit:g} seconds."),)
    except Exception as surprise:
        # A check that fails itself must not hide the others. Its text may hold anything.
        return (error(what, f"It could not be checked ({type(surprise).__name__})."),)


async def _aside(function: Callable[P, R], *args: P.args, **named: P.kwargs) -> R:
    """`function` in a thread that nobody waits for at the end.

    A file on a network mount that is gone holds its reader in the kernel for good; the threads
    of asyncio would then hold the process too.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, raised: BaseException | None) -> None:
        if future.done():
            return
        if raised is None:
            future.set_result(cast(R, result))
        else:
            future.set_exception(raised)

    def run() -> None:
        result, raised = None, None
        try:
            result = function(*args, **named)
        except BaseException as error:
            raised = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, raised)

    threading.Thread(target=run, daemon=True).start()
    return await future
