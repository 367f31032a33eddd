"""The keeper's HSM: one thread, one login, opened when it can be and opened anew when it was lost.

Only the keeper uses this; it has a single HSM thread, so closing and opening the module again is
safe here (a signer is replaced instead). Absence of the HSM is never taken for absence of a key.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from kmsd import settings
from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.hsm import Hsm
from kmsd.login import open_hsm

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()


class HsmThread:
    """Lends the HSM to a function, on the one thread that may touch it."""

    def __init__(self, hsm: settings.Hsm, run: Path) -> None:
        self._settings = hsm
        self._run = run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hsm")
        self._hsm: Hsm | None = None
        self.trouble: KmsdError | None = None

    async def __call__(
        self, function: Callable[Concatenate[Hsm, P], R], *arguments: P.args, **named: P.kwargs
    ) -> R:
        """`function(hsm, ...)`. Raises what it raises, and Unavailable or Misconfigured."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: self._lend(function, *arguments, **named)
        )

    async def close(self) -> None:
        """Closes the login and ends the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown()

    def _lend(
        self, function: Callable[Concatenate[Hsm, P], R], *arguments: P.args, **named: P.kwargs
    ) -> R:
        hsm = self._ensure_open()
        try:
            return function(hsm, *arguments, **named)
        except Unavailable as error:
            self.trouble = error
            self._drop()
            raise

    def _ensure_open(self) -> Hsm:
        if self._hsm is None:
            try:
                self._hsm = open_hsm(self._settings, self._run)
            except (Unavailable, Misconfigured) as error:
                if self.trouble is None or self.trouble.reason != error.reason:
                    log.error("hsm_not_usable", reason=error.reason, message=str(error))
                self.trouble = error
                raise
            self.trouble = None
            log.info("hsm_open", token=self._hsm.info.token)
        return self._hsm

    def _drop(self) -> None:
        if self._hsm is not None:
            hsm, self._hsm = self._hsm, None
            try:
                hsm.close()
            except KmsdError as error:
                log.warning("hsm_close", reason=error.reason)
