"""Nonces that an ACME server gave us and that were not used yet (RFC 8555 section 6.5)."""

from collections import deque
from collections.abc import Mapping

POOL = 8
"""Nonces kept for later; an older one has likely expired at the server."""
LONGEST = 512
"""Characters of a nonce, at most."""


class Nonces:
    """The newest few, each good for one request."""

    def __init__(self) -> None:
        self._kept: deque[str] = deque(maxlen=POOL)

    def keep(self, headers: Mapping[str, str]) -> None:
        """The Replay-Nonce of an answer, if it has a usable one (section 6.5.1)."""
        nonce = headers.get("replay-nonce", "")
        # No strict decoding: a nonce is an opaque word.
        word = nonce.replace("-", "").replace("_", "")
        if len(nonce) <= LONGEST and word.isascii() and word.isalnum():
            self._kept.append(nonce)

    def take(self) -> str:
        """The newest, which is then used up; empty when there is none."""
        return self._kept.pop() if self._kept else ""

    def clear(self) -> None:
        """Forget them all."""
        self._kept.clear()
