"""A client that speaks as much HTTP/2 (RFC 9113) as it takes to break off in the middle of it."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_HEADERS = 0x4
NO_LINGER = struct.pack("ii", 1, 0)


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A TCP connection that has said nothing yet."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        yield connection


def greet(connection: socket.socket) -> None:
    """Our half of the connection's beginning (section 3.4)."""
    connection.sendall(PREFACE + frame(SETTINGS, 0, b""))


def greeted(connection: socket.socket) -> None:
    """Waits for the other half: whoever sent it has taken the connection."""
    head = b""
    while len(head) < 9:
        more = connection.recv(9 - len(head))
        assert more, "closed instead"
        head += more
    assert head[3] == SETTINGS


def call(method: str, stream: int) -> bytes:
    """The beginning of a gRPC call, its fields as literals without a table (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/kmsapi.v1.Signing/{method}",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, stream, block, END_HEADERS)


def message(stream: int, content: bytes, *, claimed: int | None = None) -> bytes:
    """A gRPC message in one DATA frame. claimed: the length it says it has."""
    length = len(content) if claimed is None else claimed
    return frame(DATA, stream, struct.pack(">?I", False, length) + content)


def frame(kind: int, stream: int, content: bytes, flags: int = 0) -> bytes:
    """Section 4.1."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def cut(connection: socket.socket) -> None:
    """Ends it as a host that is gone does: with a reset, nothing said."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    connection.close()
