"""Secrets by reference: a file, or a systemd credential (systemd.exec(5), LoadCredential=).

A secret's value is in what `secret` returns and nowhere else: not in errors, not in logs.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kmsd import jose
from kmsd.config import files
from kmsd.errors import Invalid, Misconfigured

CREDENTIAL = "credential:"
LARGEST = 65_536
"""Bytes of a secret, at most."""


def secret(reference: str, name: str) -> str:
    """The text of a secret, without the one newline that editors put at the end.

    reference: the path of a file, or `credential:NAME` for $CREDENTIALS_DIRECTORY/NAME.
    name: the setting that asks (`hsm.pin`), for the errors. Raises Misconfigured:
    SECRET_MISSING, SECRET_UNREADABLE, SECRET_PERMISSIONS, SECRET_INVALID.
    """
    if not reference:
        raise Misconfigured(
            "SECRET_MISSING",
            f"{name} is not set.",
            next_step="Set it to the path of a file, or to credential:NAME.",
        )
    if reference.startswith(CREDENTIAL):
        path, forbidden = _credential(reference.removeprefix(CREDENTIAL), name), 0o037
    else:
        path, forbidden = Path(reference), 0o077
    return _text(_bytes(path, forbidden, name), path, name)


def anew(reference: str, name: str) -> Callable[[], str]:
    """`secret`, read whenever it is called for; "" where there is no reference."""
    return lambda: secret(reference, name) if reference else ""


def mac_key(reference: str, name: str) -> bytes:
    """The octets of a MAC key that an STI-CA gave as text (external account binding).

    Either base64, padded or not, in one line or several: CAs and their customers differ, and
    nothing else can be meant. Raises as `secret`.
    """
    digits = "".join(secret(reference, name).split()).translate(_TO_BASE64URL).rstrip("=")
    with suppress(Invalid):
        if octets := jose.b64url_decode(digits):
            return octets
    raise Misconfigured(
        "SECRET_INVALID",
        f"{name}: that is no MAC key in base64url or base64.",
        next_step="Put the key there as the STI-CA gave it; not its key id.",
    )


_TO_BASE64URL = str.maketrans("+/", "-_")


def _credential(credential: str, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}", credential):
        raise Misconfigured("SECRET_INVALID", f"{name}: that is no name of a systemd credential.")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise Misconfigured(
            "SECRET_MISSING",
            f"{name} is the systemd credential {credential!r}, and this process was given none.",
            next_step=f"Start it with LoadCredential={credential}:..., or name a file instead.",
        )
    return Path(folder, credential)


def _bytes(path: Path, forbidden: int, name: str) -> bytes:
    try:
        content, mode = files.read(path, LARGEST)
    except FileNotFoundError:
        raise Misconfigured(
            "SECRET_MISSING",
            f"{name}: there is no file {path}.",
            next_step="Write the secret there, for its owner alone (chmod 0600).",
        ) from None
    except OSError as error:
        raise Misconfigured(
            "SECRET_UNREADABLE",
            f"{name}: the file {path} cannot be read ({error.strerror}).",
            next_step="Its owner must be the user this process runs as.",
        ) from None
    if mode & forbidden:
        raise Misconfigured(
            "SECRET_PERMISSIONS",
            f"{name}: others than its owner may use {path} (mode {mode:04o}).",
            next_step=f"chmod 0600 {path}",
        )
    return content


def _text(content: bytes, path: Path, name: str) -> str:
    problem = ""
    text = ""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    if len(content) > LARGEST:
        problem = f"is larger than {LARGEST} bytes"
    text = text.removesuffix("\n").removesuffix("\r")
    if not problem and not text.strip():
        problem = "is empty"
    if "\0" in text:
        problem = "holds a NUL character"
    if problem:
        raise Misconfigured(
            "SECRET_INVALID",
            f"{name}: {path} {problem}.",
            next_step="Write the secret there anew, one line of text.",
        )
    return text
