"""The way to a server that a test can close: then nobody listens there, and what was open ends."""

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.system.programs import free_port

CHUNK = 65_536
HANG_UP = struct.pack("ii", 1, 0)


class Road:
    """A loopback port that leads to another one. url: instead of the server's own."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def leads(self, url: str) -> str:
        """The same URL by this way."""
        return url.replace(f":{self._target}/", f":{self.port}/")

    def open(self) -> None:
        """From now on there is a way, if there was none."""
        if self._thread is None:
            listener = socket.create_server(("127.0.0.1", self.port))
            self._closed.clear()
            self._thread = threading.Thread(target=self._serve, args=(listener,))
            self._thread.start()

    def close(self) -> None:
        """From now on connections are refused; those that are open are reset."""
        if self._thread is not None:
            self._closed.set()
            self._thread.join()
            self._thread = None

    def _serve(self, listener: socket.socket) -> None:
        with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as sockets:
            sockets.enter_context(listener)
            waiting.register(listener, selectors.EVENT_READ)
            while not self._closed.is_set():
                for key, _ in waiting.select(0.05):
                    if key.fileobj is listener:
                        self._join(listener, waiting, sockets)
                    else:
                        _pass_on(key, waiting)

    def _join(
        self,
        listener: socket.socket,
        waiting: selectors.BaseSelector,
        sockets: contextlib.ExitStack,
    ) -> None:
        near = sockets.enter_context(listener.accept()[0])
        far = sockets.enter_context(socket.create_connection(("127.0.0.1", self._target)))
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HANG_UP)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting.register(one, selectors.EVENT_READ, other)


def _pass_on(key: selectors.SelectorKey, waiting: selectors.BaseSelector) -> None:
    source, target = key.fileobj, key.data
    assert isinstance(source, socket.socket)
    assert isinstance(target, socket.socket)
    data = b""
    with contextlib.suppress(OSError):
        data = source.recv(CHUNK)
        target.sendall(data)
    if not data:
        waiting.unregister(source)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def road(target: int) -> Iterator[Road]:
    """An open one to a port of the loopback."""
    made = Road(target)
    made.open()
    try:
        yield made
    finally:
        made.close()
