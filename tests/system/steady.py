"""An STI-AS that signs all the time, whatever happens, and holds every signature to its chain."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.contract.tokens import Token, read_identity, verify_signature
from tests.system.key_room import DEST, ORIG, KeyRoom
from tests.system.programs import until

PAUSE = 0.01
"""Seconds between an answer and the next call."""


class Steady:
    """What it signed so far, oldest first, and what was refused."""

    def __init__(self) -> None:
        self.signed: list[Token] = []
        self.failures: list[BaseException] = []

    def still_signs(self) -> None:
        """Waits for some signatures of calls made from now on."""
        enough = len(self.signed) + 3
        until("more signatures", lambda: len(self.signed) > enough or self.failures)
        assert not self.failures

    def signs_with(self, x5u: str) -> None:
        """Waits until what is made names that chain."""
        self.still_signs()
        until(f"signatures under {x5u}", lambda: self.signed[-1].x5u == x5u or self.failures)
        assert not self.failures


@contextmanager
def signing(room: KeyRoom, profile: str) -> Iterator[Steady]:
    """Signs for the profile until the end; then nothing may have failed, and each signature
    verifies with the key of the chain that its x5u names."""
    steady, stop = Steady(), threading.Event()

    def sign() -> None:
        with room.client(profile) as client:
            while not stop.is_set():
                try:
                    signed = client.sign_shaken(ORIG, DEST, "A")
                    steady.signed.append(read_identity(str(signed)))
                except Exception as error:
                    steady.failures.append(error)
                time.sleep(PAUSE)

    thread = threading.Thread(target=sign)
    thread.start()
    try:
        steady.still_signs()
        yield steady
        steady.still_signs()
    finally:
        stop.set()
        thread.join()
    assert steady.failures == []
    keys = {x5u: _leaf_key(room, x5u) for x5u in {token.x5u for token in steady.signed}}
    for token in steady.signed:
        verify_signature(token, keys[token.x5u])


def _leaf_key(room: KeyRoom, x5u: str) -> ec.EllipticCurvePublicKey:
    chain = Path(room.lab.facts.cr_dir) / x5u.removeprefix(room.lab.facts.cr_url)
    key = x509.load_pem_x509_certificates(chain.read_bytes())[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key
