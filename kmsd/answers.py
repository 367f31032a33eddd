"""How an error of kmsd becomes an answer on the wire.

A call that is refused ends with a gRPC status carrying google.rpc.ErrorInfo (reason, domain
`kmsd`, metadata) in `grpc-status-details-bin`, as grpcurl and every gRPC library show it; one
item of a frame gets the same facts as a kmsapi.v1.Refusal. Anything that is not a KmsdError is
a defect: the caller learns no more than INTERNAL.
"""

from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from kmsapi.v1.signing_pb2 import Refusal

from kmsd.errors import DOMAIN, KmsdError, PeerRefused, Unavailable

LONGEST_METADATA = 1024
"""Characters of one metadata value: trailers have little room."""


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
    """google.rpc.Status with ErrorInfo, and RetryInfo where a time is known."""
    status = Status(code=code_number(error), message=str(error))
    _pack(
        status.details.add(), ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_facts(error))
    )
    if isinstance(error, Unavailable) and error.retry_after > 0:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        _pack(status.details.add(), RetryInfo(retry_delay=delay))
    return status


def refusal(error: KmsdError) -> Refusal:
    """The same facts for one item of a frame."""
    return Refusal(
        code=code_number(error), reason=error.reason, message=str(error), metadata=_facts(error)
    )


def code_number(error: KmsdError) -> int:
    """The number of the error's gRPC status code (google.rpc.Code)."""
    number: int = getattr(grpc.StatusCode, error.code).value[0]
    return number


def _facts(error: KmsdError) -> dict[str, str]:
    facts = dict(error.metadata)
    if error.next_step:
        facts["next_step"] = error.next_step
    if isinstance(error, PeerRefused) and error.problem:
        facts["problem"] = error.problem
    return {name: value[:LONGEST_METADATA] for name, value in facts.items()}


def _pack(into: Any, message: ErrorInfo | RetryInfo) -> None:
    into.Pack(message)
