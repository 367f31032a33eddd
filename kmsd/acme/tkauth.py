"""What is special about ordering from an STI-CA: the identifier and how one authorizes it.

Pure. The rest of the client is any ACME server's, and is tested against one that knows
nothing of telephone numbers. RFC 9447 (tkauth-01), RFC 9448 (TNAuthList).
"""

import base64
from collections.abc import Awaitable, Callable
from typing import Protocol

from kmsd.acme.messages import Challenge, Identifier
from kmsd.jose import b64url
from kmsd.settings import ChallengeField, Encoding

SpcToken = str | Callable[[], Awaitable[str]]
"""An SPC token (compact JWS), or what fetches one when it turns out to be needed."""


class Proof(Protocol):
    """How an authorization is answered: which challenge is taken, and what is posted to it."""

    def takes(self, challenge: Challenge) -> bool:
        """Whether this is the challenge to answer."""
        ...

    async def response(self) -> dict[str, str]:
        """The JSON object to post; asked for only when there is something to answer."""
        ...


def identifier(tnauthlist: bytes, encoding: Encoding) -> Identifier:
    """The order identifier for a TNAuthList (DER): RFC 9448 section 3, or padded base64."""
    if encoding is Encoding.BASE64:
        return Identifier("TNAuthList", base64.b64encode(tnauthlist).decode())
    return Identifier("TNAuthList", b64url(tnauthlist))


class SpcTokenProof:
    """A tkauth-01 challenge answered with an SPC token (RFC 9447 section 4, RFC 9448 section 4)."""

    def __init__(self, token: SpcToken, field: ChallengeField) -> None:
        self._token = token
        self._field = field

    def takes(self, challenge: Challenge) -> bool:
        # Some servers leave tkauth-type out; another one than `atc` is not ours to answer.
        return challenge.type == "tkauth-01" and challenge.tkauth_type in (None, "atc")

    async def response(self) -> dict[str, str]:
        token = self._token if isinstance(self._token, str) else await self._token()
        return {self._field.value: token}
