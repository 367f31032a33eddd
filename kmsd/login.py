"""Opens the HSM for a process, and never offers it a PIN that it has refused.

Tokens lock after three to ten wrong PINs, and a restarted process is one more try: so all
processes of a host take turns (a lock) and remember a refused PIN (a salted scrypt hash of it in
the run folder) until the PIN is another one.
"""

import fcntl
import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmsd import settings
from kmsd.config import secret
from kmsd.errors import Misconfigured
from kmsd.hsm import Hsm

PIN_REFUSALS = frozenset({"HSM_PIN_INCORRECT", "HSM_PIN_LOCKED", "HSM_PIN_EXPIRED"})


def open_hsm(hsm: settings.Hsm, run: Path) -> Hsm:
    """The HSM, logged in. Blocks until other processes of the host have had their turn.

    Raises Unavailable (the token is absent: try again) and Misconfigured (module, PIN: a person
    must act; a PIN that was refused before is not even tried: HSM_PIN_REFUSED_BEFORE).
    """
    pin = secret(hsm.pin, "hsm.pin")
    with one_try(run / "pin-refused", pin):
        return Hsm.open(hsm, pin)


@contextmanager
def one_try(latch: Path, pin: str) -> Iterator[None]:
    """Holds the latch while `pin` is tried, and sets it when the HSM refuses the PIN.

    Raises Misconfigured when it was set by this PIN, or cannot be set: then nothing is tried.
    """
    file = _ready(latch)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        remembered = os.pread(file, _LENGTH, 0)
        if any(remembered) and hmac.compare_digest(_hash(remembered[:16], pin), remembered):
            raise Misconfigured(
                "HSM_PIN_REFUSED_BEFORE",
                "The HSM refused this PIN before; it is not tried again, because tokens lock.",
                next_step=f"Correct the PIN in its file, or remove {latch} to try the same again.",
            )
        try:
            yield
        except Misconfigured as error:
            if error.reason in PIN_REFUSALS:
                os.pwrite(file, _hash(os.urandom(16), pin), 0)
            raise
        os.pwrite(file, bytes(_LENGTH), 0)
    finally:
        os.close(file)


_LENGTH = 48


def _ready(latch: Path) -> int:
    """The latch, opened, with room to remember a PIN: a full disk must not cost one more try."""
    try:
        latch.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(latch, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            os.posix_fallocate(file, 0, _LENGTH)
        except BaseException:
            os.close(file)
            raise
    except OSError as error:
        raise Misconfigured(
            "RUN_FOLDER_UNUSABLE",
            f"{latch} cannot be written: {error.strerror}; without it, no PIN is tried.",
            next_step="Make room, and let keeper and signers write there: see `run` in kmsd.toml.",
        ) from error
    return file


def _hash(salt: bytes, pin: str) -> bytes:
    return salt + hashlib.scrypt(pin.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)
