"""An event loop in a thread of its own, and how other threads reach it.

A coroutine goes there one by one. Calls of single PASSporTs go through an inbox: threads that
call while the loop is at work wake it once, not once each, and no task is made for a call.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from kmsd_client.answers import Signed
from kmsd_client.calls import Call

_T = TypeVar("_T")


class Answer:
    """What one thread waits on: the outcome of one call."""

    __slots__ = ("_arrived", "_error", "_over", "_signed")

    def __init__(self) -> None:
        self._arrived = threading.Lock()  # the cheapest thing that one thread can wait on
        self._arrived.acquire()
        self._over = False
        self._signed: Signed | None = None
        self._error: Exception | None = None

    def done(self) -> bool:
        """Whether it has arrived, or nobody waits for it any more."""
        return self._over

    def set_result(self, signed: Signed, /) -> None:
        """In the loop's thread, once."""
        self._signed = signed
        self._over = True
        self._arrived.release()

    def set_exception(self, error: Exception, /) -> None:
        """In the loop's thread, instead."""
        self._error = error
        self._over = True
        self._arrived.release()

    def wait(self) -> Signed:
        """In the thread that calls, once. Raises what was set."""
        try:
            self._arrived.acquire()
        finally:
            self._over = True  # an interrupt of the wait: it need not be signed any more
        if self._signed is None:
            raise self._error or AssertionError("an answer arrived that says nothing")
        return self._signed


class LoopThread:
    """An event loop in a thread; it does not keep the program from ending.

    submit: what is done with a call in the loop's thread; an error it raises goes to the caller.
    """

    def __init__(self, submit: Callable[[Call], None]) -> None:
        self.pid = os.getpid()
        self._submit = submit
        self._loop = asyncio.new_event_loop()
        self._inbox: deque[Call] = deque()
        self._is_woken = False
        self._submitting = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kmsd-client", daemon=True
        )
        self._thread.start()

    def submit(self, call: Call) -> None:
        """Hands over a call; the outcome goes to its promise. Raises RuntimeError when closed."""
        # Without a lock: whoever appends before the loop takes what is there is seen by it, and
        # whoever appends after that finds the loop not woken, or stopped.
        self._inbox.append(call)
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # a loop that is closed: then it is stopped as well
                self._loop.call_soon_threadsafe(self._take)
        if self._stopped:
            raise RuntimeError("the client is closed")

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
            self._take()
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
            self._take()

    def _take(self) -> None:
        self._is_woken = False
        while self._inbox:
            call = self._inbox.popleft()
            try:
                self._submit(call)
            except Exception as error:
                call.fail(error)
