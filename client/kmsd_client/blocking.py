"""The client for programs on threads: the asyncio client behind an event loop of its own.

One core for both front ends means one behaviour, and later one place where the calls of many
threads become one frame. The price is a hop to the loop's thread for each call.
"""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from kmsd_client.answers import CredentialChange, Signed
from kmsd_client.asynchronous import DEFAULT_TIMEOUT, AsyncClient
from kmsd_client.errors import SigningError
from kmsd_client.passports import Attest, Dest, Passport
from kmsd_client.tls import Tls

_T = TypeVar("_T")


class Client:
    """`AsyncClient` without await: same arguments, same results, same errors.

    Safe to call from any number of threads. The first call starts a thread named "kmsd-client";
    `close`, or leaving `with`, ends it. A client that was used before a fork raises RuntimeError
    in the child: make it, or use it first, in each worker. Never call it on an event loop's
    thread: it blocks.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        tls: Tls | None,
        profile: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._client = AsyncClient(targets, tls=tls, profile=profile, timeout=timeout)
        self._starting = threading.Lock()
        self._thread: _LoopThread | None = None
        self._closed = False

    def __repr__(self) -> str:
        return repr(self._client).removeprefix("Async")

    def __enter__(self) -> Self:
        try:
            self._run(self._client.__aenter__)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, grace: float | None = None) -> None:
        """As `AsyncClient.close`. Calls of other threads get the grace to finish."""
        with self._starting:
            thread, self._thread, self._closed = self._thread, None, True
        if thread is not None and thread.pid == os.getpid():
            thread.stop(lambda: self._client.close(grace))

    def sign_shaken(
        self,
        orig: str,
        dest: Dest,
        attest: Attest,
        *,
        origid: str = "",
        iat: int = 0,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """As `AsyncClient.sign_shaken`."""
        return self._run(
            lambda: self._client.sign_shaken(
                orig, dest, attest, origid=origid, iat=iat, profile=profile, timeout=timeout
            )
        )

    def sign_base(
        self,
        orig: str,
        dest: Dest,
        *,
        iat: int = 0,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """As `AsyncClient.sign_base`."""
        return self._run(
            lambda: self._client.sign_base(orig, dest, iat=iat, profile=profile, timeout=timeout)
        )

    def sign_div(
        self,
        orig: str,
        dest: Dest,
        div: str,
        iat: int,
        *,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """As `AsyncClient.sign_div`."""
        return self._run(
            lambda: self._client.sign_div(orig, dest, div, iat, profile=profile, timeout=timeout)
        )

    def sign_rph(
        self,
        orig: str,
        dest: Dest,
        auth: Sequence[str],
        *,
        iat: int = 0,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """As `AsyncClient.sign_rph`."""
        return self._run(
            lambda: self._client.sign_rph(
                orig, dest, auth, iat=iat, profile=profile, timeout=timeout
            )
        )

    def sign_rcd(
        self,
        orig: str,
        dest: Dest,
        *,
        nam: str = "",
        apn: str = "",
        icn: str = "",
        jcd: str = "",
        jcl: str = "",
        rcdi: Mapping[str, str] | None = None,
        crn: str = "",
        iat: int = 0,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """As `AsyncClient.sign_rcd`."""
        return self._run(
            lambda: self._client.sign_rcd(
                orig,
                dest,
                nam=nam,
                apn=apn,
                icn=icn,
                jcd=jcd,
                jcl=jcl,
                rcdi=rcdi,
                crn=crn,
                iat=iat,
                profile=profile,
                timeout=timeout,
            )
        )

    def sign(
        self, passport: Passport, *, profile: str | None = None, timeout: float | None = None
    ) -> Signed:
        """As `AsyncClient.sign`."""
        return self._run(lambda: self._client.sign(passport, profile=profile, timeout=timeout))

    def sign_many(
        self,
        passports: Sequence[Passport],
        *,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> list[Signed | SigningError]:
        """As `AsyncClient.sign_many`."""
        return self._run(
            lambda: self._client.sign_many(passports, profile=profile, timeout=timeout)
        )

    def watch(self, profiles: Sequence[str] = ()) -> Generator[CredentialChange, None, None]:
        """As `AsyncClient.watch`: blocks between changes, ends when another thread closes the
        client. Leave the loop early through `contextlib.closing`."""

        async def begin() -> AsyncGenerator[CredentialChange, None]:
            return self._client.watch(profiles)

        async def following() -> CredentialChange | None:
            return await anext(changes, None)

        changes = self._run(begin)
        try:
            while (change := self._run(following)) is not None:
                yield change
        finally:
            with suppress(RuntimeError):  # closed meanwhile, which ended the watch as well
                self._run(changes.aclose)

    def healthy(self, service: str = "", *, timeout: float | None = None) -> bool:
        """As `AsyncClient.healthy`."""
        return self._run(lambda: self._client.healthy(service, timeout=timeout))

    def _run(self, call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        return self._started().run(call)

    def _started(self) -> "_LoopThread":
        with self._starting:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._thread is None:
                self._thread = _LoopThread()
            if self._thread.pid != os.getpid():
                raise RuntimeError("a client that was used before a fork is of no use in the child")
            return self._thread


class _LoopThread:
    """An event loop in a thread of its own; it does not keep the program from ending."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._submitting = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kmsd-client", daemon=True
        )
        self._thread.start()

    def run(self, call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Runs a coroutine in the loop and waits for it; an interrupt of the wait cancels it."""
        with self._submitting:
            # Under the lock: what is submitted to a loop that stops would be waited for forever.
            if self._stopped:
                raise RuntimeError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a last coroutine, waits for what other threads began, ends loop and thread."""

        async def end() -> None:
            await last()
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=1.0)

        with self._submitting:
            self._stopped = True
            future = asyncio.run_coroutine_threadsafe(end(), self._loop)
        try:
            future.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
