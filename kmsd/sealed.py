"""Sealed files: JSON documents that are on disk whole, with their checksum, or not at all.

A file is `{"sha256": HEX, "body": DOCUMENT}`, written under its name in one step (temporary file,
fsync, rename) and never altered. The checksum is that of the body's bytes: it tells a file that a
disk spoiled, and one document from another. It is no signature: who may write may forge.
"""

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import msgspec

from kmsd.errors import Misconfigured, Unavailable
from kmsd.model import Value


class _Sealed(Value, frozen=True):
    sha256: str
    body: msgspec.Raw


_Document = TypeVar("_Document", bound=Value)


def encode(document: Value) -> tuple[bytes, str]:
    """The file's bytes, and the document's checksum: SHA-256, 64 lower-case hex digits."""
    body = msgspec.json.encode(document)
    digest = sha256(body).hexdigest()
    return msgspec.json.encode(_Sealed(digest, msgspec.Raw(body))), digest


def load(path: Path, kind: type[_Document]) -> tuple[_Document, str]:
    """The document and its checksum.

    Raises FileNotFoundError, Unavailable KEYRING_UNREADABLE, Misconfigured KEYRING_DAMAGED.
    """
    try:
        sealed = msgspec.json.decode(path.read_bytes(), type=_Sealed)
        if sha256(sealed.body).hexdigest() != sealed.sha256:
            raise damaged(path, "its checksum is another one")
        return msgspec.json.decode(sealed.body, type=kind), sealed.sha256
    except msgspec.MsgspecError as error:
        raise damaged(path, str(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(
            "KEYRING_UNREADABLE",
            f"{path} cannot be read: {error.strerror}.",
            next_step="May this user read it?",
        ) from error


def write(path: Path, content: bytes) -> None:
    """The whole file under its name, or nothing. Raises Unavailable KEYRING_NOT_WRITTEN."""
    temporary = path.with_suffix(TEMPORARY)
    try:
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), 0o640)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise not_written(path, error) from error


TEMPORARY = ".tmp"


def damaged(path: Path, why: str) -> Misconfigured:
    """What is said of a file that does not hold what was written."""
    return Misconfigured(
        "KEYRING_DAMAGED",
        f"{path} is damaged: {why}.",
        next_step="Restart the keeper: it writes the keyring anew. Look at the disk.",
    )


def not_written(path: Path, error: OSError) -> Unavailable:
    """What is said of a file that could not be made."""
    return Unavailable(
        "KEYRING_NOT_WRITTEN",
        f"{path} cannot be written: {error.strerror}.",
        next_step="Make room on the disk; signing goes on with the present keyring.",
    )
