"""Reading failures off the wire: every spelling, and none that can be read."""

import pickle

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, Help, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from kmsapi.v1 import signing_pb2 as pb
from kmsd_client import (
    DeadlineExceeded,
    Denied,
    Overloaded,
    Refused,
    SigningError,
    Unavailable,
)
from kmsd_client.refusals import DETAILS_KEY, error_of_call, error_of_refusal, is_from_signer

KINDS = {
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNKNOWN: SigningError,
    grpc.StatusCode.INVALID_ARGUMENT: Refused,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: Refused,
    grpc.StatusCode.ALREADY_EXISTS: Refused,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.OUT_OF_RANGE: Refused,
    grpc.StatusCode.UNIMPLEMENTED: Refused,
    grpc.StatusCode.INTERNAL: SigningError,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: SigningError,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
}


def failed(
    code: grpc.StatusCode, details: bytes | None = None, message: str | None = "No."
) -> grpc.aio.AioRpcError:
    """A call that ended with `code`, and `details` as its google.rpc.Status."""
    trailing = grpc.aio.Metadata(*([] if details is None else [(DETAILS_KEY, details)]))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, message)


def status(*details: ErrorInfo | RetryInfo | Help) -> bytes:
    """A serialised google.rpc.Status."""
    packed = []
    for detail in details:
        packed.append(Any())
        packed[-1].Pack(detail)
    serialised: bytes = Status(code=3, message="No.", details=packed).SerializeToString()
    return serialised


def info(domain: str = "kmsd") -> ErrorInfo:
    return ErrorInfo(reason="FRAME_TOO_LARGE", domain=domain, metadata={"limit": "256"})


@pytest.mark.parametrize("code", KINDS, ids=lambda code: code.name)
def test_a_status_code_says_what_to_do(code: grpc.StatusCode) -> None:
    assert type(error_of_call(failed(code))) is KINDS[code]
    assert type(error_of_refusal(pb.Refusal(code=code.value[0]))) is KINDS[code]


def test_every_code_but_ok_has_a_kind() -> None:
    assert set(KINDS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


def test_a_refusal_that_is_ok_or_of_no_known_code_is_a_broken_signer() -> None:
    for code in (0, 99, -1):
        assert type(error_of_refusal(pb.Refusal(code=code))) is SigningError


def test_a_refusal_in_an_answer_keeps_reason_sentence_and_facts() -> None:
    refusal = pb.Refusal(code=3, reason="TN_INVALID", message="No TN.", metadata={"field": "orig"})
    error = error_of_refusal(refusal)
    assert (error.reason, error.message) == ("TN_INVALID", "No TN.")
    assert error.metadata == {"field": "orig"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.05", 0.05), ("2", 2.0), ("-1", 0.0), ("nan", 0.0), ("inf", 0.0), ("soon", 0.0), ("", 0.0)],
)
def test_a_refusal_in_an_answer_says_how_long_to_wait(text: str, seconds: float) -> None:
    refusal = pb.Refusal(code=8, reason="OVERLOADED", metadata={"retry_after_seconds": text})
    error = error_of_refusal(refusal)
    assert isinstance(error, Overloaded)
    assert error.retry_after == seconds


def test_error_info_and_retry_info_are_read_in_any_order_among_others() -> None:
    retry = RetryInfo(retry_delay=Duration(seconds=1, nanos=250_000_000))
    for details in (status(info(), retry, Help()), status(Help(), retry, info())):
        error = error_of_call(failed(grpc.StatusCode.RESOURCE_EXHAUSTED, details))
        assert error.reason == "FRAME_TOO_LARGE"
        assert error.metadata == {"limit": "256"}
        assert error.retry_after == 1.25


def test_an_error_info_of_another_domain_is_not_read() -> None:
    foreign = failed(grpc.StatusCode.UNAVAILABLE, status(info("proxy.example.com")))
    assert error_of_call(foreign).reason == "UNAVAILABLE"
    assert not is_from_signer(foreign)
    assert is_from_signer(failed(grpc.StatusCode.UNAVAILABLE, status(info())))


def test_a_wait_in_the_past_is_no_wait() -> None:
    details = status(RetryInfo(retry_delay=Duration(seconds=-5)))
    assert error_of_call(failed(grpc.StatusCode.UNAVAILABLE, details)).retry_after == 0.0


def test_a_peer_that_says_nothing_still_gives_a_reason_and_a_sentence() -> None:
    error = error_of_call(failed(grpc.StatusCode.INTERNAL, None, None))
    assert error.reason == "INTERNAL"
    assert "INTERNAL" in error.message


@given(st.binary(max_size=200))
def test_no_bytes_in_the_details_keep_an_error_from_being_told(details: bytes) -> None:
    error = error_of_call(failed(grpc.StatusCode.NOT_FOUND, details))
    assert isinstance(error, Refused)


@given(st.binary(max_size=60))
def test_no_bytes_in_one_detail_keep_an_error_from_being_told(value: bytes) -> None:
    broken = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=value)
    details = Status(details=[broken]).SerializeToString()
    assert isinstance(error_of_call(failed(grpc.StatusCode.NOT_FOUND, details)), Refused)


def test_an_error_survives_a_process_boundary() -> None:
    error = Overloaded("OVERLOADED", "Send less.", {"limit": "9"}, 2.5)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is Overloaded
    assert (again.reason, again.message, again.metadata, again.retry_after) == (
        "OVERLOADED",
        "Send less.",
        {"limit": "9"},
        2.5,
    )
    assert str(again) == "Send less. (OVERLOADED)"
