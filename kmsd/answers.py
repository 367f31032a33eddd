"""How an error of kmsd becomes an answer on the wire.

A call that is refused ends with a gRPC status carrying google.rpc.ErrorInfo (reason, domain
`kmsd`, metadata) in `grpc-status-details-bin`, as grpcurl and every gRPC library show it; one
item of a frame gets the same facts as a kmsapi.v1.Refusal. What is no KmsdError is a defect: the
caller learns no more than INTERNAL (`listen` catches those).
"""

from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from kmsapi.v1.signing_pb2 import Refusal

from kmsd.errors import DOMAIN, Exhausted, KmsdError, PeerRefused, Unavailable

LONGEST_TEXT = 1024
"""Bytes of the message and of one metadata value."""
LARGEST_STATUS = 3072
"""Bytes of a whole status. It travels in the trailers, of which gRPC takes 8 KiB, in base64, and
its message a second time, percent-encoded."""


async def abort(context: grpc.aio.ServicerContext[object, object], error: KmsdError) -> NoReturn:
    """Ends the call with `error` as its status."""
    status = rich_status(error)
    await context.abort(
        getattr(grpc.StatusCode, error.code),
        status.message,
        (("grpc-status-details-bin", status.SerializeToString()),),
    )
    raise AssertionError("abort returned")


def rich_status(error: KmsdError) -> Status:
    """google.rpc.Status with ErrorInfo, and RetryInfo where a time is known.

    Texts are cut, all of them alike, until it is no larger than LARGEST_STATUS.
    """
    longest = LONGEST_TEXT
    while (status := _status(error, longest)).ByteSize() > LARGEST_STATUS and longest > 1:
        longest //= 2
    return status


def refusal(error: KmsdError) -> Refusal:
    """The same facts for one item of a frame, or for a frame; RetryInfo's as
    `retry_after_seconds`."""
    facts = _facts(error, LONGEST_TEXT)
    if seconds := _retry_after(error):
        facts["retry_after_seconds"] = f"{seconds:.3f}"
    return Refusal(
        code=code_number(error),
        reason=error.reason,
        message=_cut(str(error), LONGEST_TEXT),
        metadata=facts,
    )


def code_number(error: KmsdError) -> int:
    """The number of the error's gRPC status code (google.rpc.Code)."""
    number: int = getattr(grpc.StatusCode, error.code).value[0]
    return number


def _status(error: KmsdError, longest: int) -> Status:
    status = Status(code=code_number(error), message=_cut(str(error), longest))
    facts = _facts(error, longest)
    _pack(status.details.add(), ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts))
    if seconds := _retry_after(error):
        delay = Duration()
        delay.FromNanoseconds(int(seconds * 1e9))
        _pack(status.details.add(), RetryInfo(retry_delay=delay))
    return status


def _retry_after(error: KmsdError) -> float:
    return error.retry_after if isinstance(error, Exhausted | Unavailable) else 0.0


def _facts(error: KmsdError, longest: int) -> dict[str, str]:
    facts = dict(error.metadata)
    if error.next_step:
        facts["next_step"] = error.next_step
    if isinstance(error, PeerRefused) and error.problem:
        facts["problem"] = error.problem
    return {name: _cut(value, longest) for name, value in facts.items()}


def _cut(text: str, longest: int) -> str:
    """At most `longest` bytes of UTF-8; what cannot be UTF-8 (a strange path) becomes `?`."""
    return text.encode("utf-8", "replace")[:longest].decode("utf-8", "ignore")


def _pack(into: Any, message: ErrorInfo | RetryInfo) -> None:
    into.Pack(message)
