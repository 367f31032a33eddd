"""Mutual TLS towards the signer: which authority to trust, and who the caller is.

Not here: which names a signer's certificate may carry (gRPC checks the target's host name) and
what the caller may sign (the signer's grants decide by the caller's certificate).
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import grpc

Pem: TypeAlias = str | PathLike[str] | bytes
"""A path, or the PEM text itself as bytes."""


@dataclass(frozen=True, slots=True, repr=False)
class Tls:
    """Credentials of a connection.

    ca: certificates that may have issued the signer's, PEM.
    certificate, key: who the caller is, PEM, the chain leaf first, the key without passphrase;
        both or none, and a signer refuses a caller without them.
    server_name: name expected in the signer's certificate, where it is not the target's host.

    Paths are read when a client first connects. A renewed certificate is used by the next
    client that is made: gRPC has no way to change it under a living connection.
    """

    ca: Pem
    certificate: Pem | None = None
    key: Pem | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls needs certificate and key together, or neither")

    def __repr__(self) -> str:
        return f"Tls(server_name={self.server_name!r})"


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Reads the files. Raises OSError, or ValueError naming the part that is no PEM.

    gRPC itself accepts anything here and only ever says that no connection came about.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_read("ca", tls.ca, b"CERTIFICATE"),
        private_key=None if tls.key is None else _read("key", tls.key, b"PRIVATE KEY"),
        certificate_chain=(
            None
            if tls.certificate is None
            else _read("certificate", tls.certificate, b"CERTIFICATE")
        ),
    )


def _read(part: str, pem: Pem, label: bytes) -> bytes:
    content = pem if isinstance(pem, bytes) else Path(pem).read_bytes()
    if label + b"-----" not in content or b"-----BEGIN " not in content:
        raise ValueError(f"tls {part} holds no PEM {label.decode()}")
    if b"ENCRYPTED" in content:
        raise ValueError(f"tls {part} is encrypted; a key without passphrase is needed")
    return content
