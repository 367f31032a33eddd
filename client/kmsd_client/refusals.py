"""What the wire says about a failure, read into the errors of `kmsd_client.errors`.

Three spellings of one thing: the status of a failed call with its google.rpc.Status in the
trailing metadata, a `Refusal` inside an answer, and nothing but a status code (a proxy, a
peer that is no kmsd, gRPC itself). Everything read here may be hostile: what cannot be read
is left out, and the error is told all the same.

Not here: whether to try again (`connections`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from kmsapi.v1 import signing_pb2 as pb

from kmsd_client.errors import (
    DeadlineExceeded,
    Denied,
    Overloaded,
    Refused,
    SigningError,
    Unavailable,
)

DOMAIN: Final = "kmsd"
"""Domain of the reasons that are part of the API; an ErrorInfo of another is not ours to read."""

DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata that holds the google.rpc.Status (gRPC's richer error model)."""

RETRY_AFTER_KEY: Final = "retry_after_seconds"
"""Metadata of a refusal inside an answer that says what google.rpc.RetryInfo says elsewhere."""

_KIND: Final[dict[grpc.StatusCode, type[SigningError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: Refused,
    grpc.StatusCode.NOT_FOUND: Refused,
    grpc.StatusCode.ALREADY_EXISTS: Refused,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.OUT_OF_RANGE: Refused,
    grpc.StatusCode.UNIMPLEMENTED: Refused,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # a signer that stops cancels what it has begun
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
}

_CODE: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


def error_of_call(failed: grpc.aio.AioRpcError) -> SigningError:
    """The typed error of a call that ended with a gRPC status other than OK."""
    facts = _facts(failed.trailing_metadata() or ())
    return _error(
        failed.code(),
        facts.reason,
        failed.details() or "",
        facts.metadata,
        facts.retry_after,
    )


def error_of_refusal(refusal: pb.Refusal) -> SigningError:
    """The typed error of a refusal that came inside an answer."""
    code = _CODE.get(refusal.code, grpc.StatusCode.UNKNOWN)
    metadata = dict(refusal.metadata)
    retry_after = _seconds(metadata.get(RETRY_AFTER_KEY, ""))
    return _error(code, refusal.reason, refusal.message, metadata, retry_after)


def is_from_signer(failed: grpc.aio.AioRpcError) -> bool:
    """Whether a kmsd signer said so itself, rather than the connection to it failing."""
    return bool(_facts(failed.trailing_metadata() or ()).reason)


@dataclass(frozen=True, slots=True)
class _Facts:
    reason: str
    metadata: dict[str, str]
    retry_after: float


def _error(
    code: grpc.StatusCode, reason: str, message: str, metadata: dict[str, str], retry_after: float
) -> SigningError:
    kind = _KIND.get(code, SigningError)
    return kind(
        reason or code.name,
        message or f"The signer answered {code.name} and did not say why.",
        metadata,
        retry_after,
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if 0.0 < seconds < inf else 0.0  # not a number fails both


def _facts(trailing: Iterable[tuple[str, str | bytes]]) -> _Facts:
    reason, metadata, retry_after = "", dict[str, str](), 0.0
    status = status_pb2.Status()
    try:
        for key, value in trailing:
            if key == DETAILS_KEY and isinstance(value, bytes):
                status = status_pb2.Status.FromString(value)
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                delay = retry.retry_delay
                retry_after = max(0.0, delay.seconds + delay.nanos / 1e9)
    except DecodeError:
        pass  # hostile or broken details: what was read until here is all there is
    return _Facts(reason, metadata, retry_after)
