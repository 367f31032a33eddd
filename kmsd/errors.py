"""What can go wrong, sorted by whose fault it is.

`Refused` is the caller's fault, `PeerRefused` that of an STI-PA, STI-CA or STI-CR,
`Misconfigured` the operator's to correct, `Unavailable` and `Late` nobody's: try again.
Every error carries a `reason` for programs (UPPER_SNAKE, stable: part of the API,
google.rpc.ErrorInfo), one sentence for people, and the next step to take.
Foreign exceptions are translated into these once, at the adapter that met them.
"""

from collections.abc import Mapping
from typing import ClassVar

DOMAIN = "kmsd"


class KmsdError(Exception):
    """The root of every error kmsd raises on purpose.

    reason: UPPER_SNAKE_CASE, at most 63 characters, stable across releases.
    message: one sentence for a person; never holds a secret.
    next_step: what to do about it, if somebody must do something.
    metadata: further facts for programs, text to text.
    `code` is the name of the gRPC status that answers it.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, reason: str, message: str, *, next_step: str = "", **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.next_step = next_step
        self.metadata: Mapping[str, str] = metadata

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".rstrip()


class Refused(KmsdError):
    """The caller asked for something that is not to be had; asking again will not help."""

    code = "FAILED_PRECONDITION"


class Invalid(Refused):
    """An argument is malformed, missing or too large."""

    code = "INVALID_ARGUMENT"


class NotFound(Refused):
    """The thing named does not exist."""

    code = "NOT_FOUND"


class Denied(Refused):
    """No grant allows this caller this."""

    code = "PERMISSION_DENIED"


class Precondition(Refused):
    """Correct in itself, but not in the state things are in."""

    code = "FAILED_PRECONDITION"


class Exhausted(Refused):
    """Over a limit: the caller must slow down or send less.

    retry_after: seconds after which there may be room, 0.0 when nobody knows.
    """

    code = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after: float = 0.0,
        next_step: str = "",
        **metadata: str,
    ) -> None:
        super().__init__(reason, message, next_step=next_step, **metadata)
        self.retry_after = retry_after


class PeerRefused(KmsdError):
    """An STI-PA, STI-CA or STI-CR answered, and not with what was asked.

    peer: "sti-pa", "sti-ca" or "sti-cr". problem: the peer's own words (an RFC 7807
    problem document as text, or the body), shown to the operator word for word.
    """

    code = "FAILED_PRECONDITION"

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        peer: str,
        problem: str = "",
        next_step: str = "",
        **metadata: str,
    ) -> None:
        super().__init__(reason, message, next_step=next_step, peer=peer, **metadata)
        self.peer = peer
        self.problem = problem


class Unavailable(KmsdError):
    """Something that should be there did not answer; the same call may succeed later.

    retry_after: seconds the other side asked to wait, 0.0 when it did not say.
    """

    code = "UNAVAILABLE"

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after: float = 0.0,
        next_step: str = "",
        **metadata: str,
    ) -> None:
        super().__init__(reason, message, next_step=next_step, **metadata)
        self.retry_after = retry_after


class Late(KmsdError):
    """The caller's deadline passed before its turn; nothing was done for it."""

    code = "DEADLINE_EXCEEDED"


class Misconfigured(KmsdError):
    """Configuration, a secret or the host is wrong; a person must correct it."""

    code = "FAILED_PRECONDITION"
