"""The client for programs on threads: the asyncio client behind an event loop of its own.

One core for both front ends means one behaviour, and one place where the calls of many threads
become one frame. Not here: how they get there (`loopthread`).
"""

import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from kmsd_client.answers import CredentialChange, Signed
from kmsd_client.asynchronous import AsyncClient
from kmsd_client.calls import LARGEST_WIRE, Call
from kmsd_client.errors import SigningError
from kmsd_client.loopthread import Answer, LoopThread
from kmsd_client.passports import Attest, Base, Dest, Div, Passport, Rcd, Rph, Shaken, to_wire
from kmsd_client.terms import (
    DEFAULT_CONNECTIONS,
    DEFAULT_FRAME_ITEMS,
    DEFAULT_QUEUE_ITEMS,
    DEFAULT_TIMEOUT,
    Terms,
    addresses,
)
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
        connections: int = DEFAULT_CONNECTIONS,
        frame_items: int = DEFAULT_FRAME_ITEMS,
        queue_items: int = DEFAULT_QUEUE_ITEMS,
    ) -> None:
        self._client = AsyncClient(
            targets,
            tls=tls,
            profile=profile,
            timeout=timeout,
            connections=connections,
            frame_items=frame_items,
            queue_items=queue_items,
        )
        self._terms = Terms(
            addresses(targets), profile, timeout, connections, frame_items, queue_items
        )
        self._starting = threading.Lock()
        self._thread: LoopThread | None = None
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
        return self.sign(Shaken(orig, dest, attest, origid, iat), profile=profile, timeout=timeout)

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
        return self.sign(Base(orig, dest, iat), profile=profile, timeout=timeout)

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
        return self.sign(Div(orig, dest, div, iat), profile=profile, timeout=timeout)

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
        return self.sign(Rph(orig, dest, auth, iat), profile=profile, timeout=timeout)

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
        rcd = Rcd(orig, dest, nam, apn, icn, jcd, jcl, rcdi or {}, crn, iat)
        return self.sign(rcd, profile=profile, timeout=timeout)

    def sign(
        self, passport: Passport, *, profile: str | None = None, timeout: float | None = None
    ) -> Signed:
        """As `AsyncClient.sign`: what many threads call at the same time travels together."""
        wire = to_wire(passport)
        if len(wire) > LARGEST_WIRE:
            return self._run(lambda: self._client.sign(passport, profile=profile, timeout=timeout))
        name, seconds = self._terms.of(profile, timeout)
        answer = Answer()
        self._started().submit(Call(wire, name, seconds, time.monotonic() + seconds, answer))
        return answer.wait()

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

    def _started(self) -> LoopThread:
        with self._starting:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._thread is None:
                self._thread = LoopThread(lambda call: self._client._open().submit(call))
            if self._thread.pid != os.getpid():
                raise RuntimeError("a client that was used before a fork is of no use in the child")
            return self._thread
