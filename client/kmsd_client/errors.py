"""What can go wrong for a caller of the signer, sorted by what to do about it.

Ask again?  `Unavailable` and `DeadlineExceeded`: yes. `Overloaded`: yes, after `retry_after`.
`Refused` and `Denied`: no, the same request is refused again. A bare `SigningError`: the signer
or the path to it is broken; look at `reason`.

Not here: errors of the calling program. A wrong type is a `TypeError`, a useless setting a
`ValueError`, a client used after `close` or across a fork a `RuntimeError`.
"""

from collections.abc import Mapping


class SigningError(Exception):
    """The root of everything the signer, or the way to it, can answer instead of a signature.

    reason: for programs, UPPER_SNAKE_CASE and stable. The signer's own where it gave one
        (google.rpc.ErrorInfo of domain "kmsd", `Refusal.reason`), else the name of the gRPC
        status ("UNAVAILABLE", "INTERNAL", ...), else one of this client: "BAD_ANSWER", "CLOSED",
        "CLIENT_QUEUE_FULL", "SIGNER_SILENT".
    message: for people: what is wrong and what to do next.
    metadata: further facts for programs, text to text: which field, which limit.
    retry_after: seconds the signer asked to wait (google.rpc.RetryInfo, or the refusal's
        `retry_after_seconds`), 0.0 when it did not say.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        retry_after: float = 0.0,
    ) -> None:
        # All four positional: that is what lets an exception cross a process boundary (pickle).
        super().__init__(reason, message, dict(metadata or {}), retry_after)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} ({self.reason})"


class Refused(SigningError):
    """The request is wrong or not to be had; asking again will not help."""


class Denied(Refused):
    """No grant allows this caller this, or the signer does not know the caller."""


class Unavailable(SigningError):
    """No signer answered, or its HSM is away; the same call may succeed later."""


class DeadlineExceeded(SigningError):
    """No answer in time. The signer may have signed; signing again does no harm."""


class Overloaded(SigningError):
    """The signer, or this client's queue, is over capacity: send less, wait `retry_after`."""
