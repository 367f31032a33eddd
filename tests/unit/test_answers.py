"""Errors on the wire: as google.rpc has them, always small enough for the trailers."""

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from kmsd import errors
from kmsd.answers import LARGEST_STATUS, LONGEST_TEXT, code_number, refusal, rich_status

KINDS = [
    (errors.Invalid, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Denied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.Precondition, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.Misconfigured, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.KmsdError, grpc.StatusCode.INTERNAL),
]


def info_of(status: Status) -> ErrorInfo:
    """As a client reads it, from the bytes."""
    info = ErrorInfo()
    assert Status.FromString(status.SerializeToString()).details[0].Unpack(info)
    return info


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_each_kind_of_error_has_its_status_code(
    kind: type[errors.KmsdError], code: grpc.StatusCode
) -> None:
    assert code_number(kind("REASON", "Words.")) == code.value[0]


def test_a_status_carries_reason_domain_metadata_and_next_step() -> None:
    error = errors.Invalid(
        "TN_INVALID", "It is no number.", next_step="Write digits.", field="orig"
    )
    status = rich_status(error)
    assert status.message == "It is no number. Write digits."
    info = info_of(status)
    assert (info.reason, info.domain) == ("TN_INVALID", "kmsd")
    assert dict(info.metadata) == {"field": "orig", "next_step": "Write digits."}
    assert len(status.details) == 1


def test_a_known_time_to_wait_is_a_retry_info() -> None:
    status = rich_status(errors.Unavailable("BUSY", "Later.", retry_after=1.5))
    retry = RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_the_words_of_a_peer_are_shown() -> None:
    error = errors.PeerRefused("ACME", "It said no.", peer="sti-ca", problem='{"detail": "no"}')
    assert dict(info_of(rich_status(error)).metadata) == {
        "peer": "sti-ca",
        "problem": '{"detail": "no"}',
    }


def test_a_refusal_has_the_same_facts_for_one_item() -> None:
    error = errors.Denied("TYPE_NOT_GRANTED", "No.", next_step="Ask.", type="rcd")
    item = refusal(error)
    assert (item.code, item.reason, item.message) == (7, "TYPE_NOT_GRANTED", "No. Ask.")
    assert dict(item.metadata) == {"type": "rcd", "next_step": "Ask."}


texts = st.text(max_size=3000) | st.text(alphabet="\N{EURO SIGN}\U0001f511a", min_size=2000)


@given(message=texts, problem=texts, facts=st.dictionaries(st.sampled_from("abcdefgh"), texts))
def test_whatever_a_peer_wrote_the_status_fits_and_is_text(
    message: str, problem: str, facts: dict[str, str]
) -> None:
    error = errors.PeerRefused("R", message, peer="sti-ca", problem=problem, **facts)
    status = rich_status(error)
    assert status.ByteSize() <= LARGEST_STATUS
    assert info_of(status).reason == "R"
    item = refusal(error)
    assert all(len(text.encode()) <= LONGEST_TEXT for text in item.metadata.values())
    for name, value in item.metadata.items():
        assert (facts | {"peer": "sti-ca", "problem": problem})[name].startswith(value)


def test_a_path_that_is_no_text_becomes_text() -> None:
    strange = b"/run/\xff".decode(errors="surrogateescape")
    error = errors.Misconfigured("R", f"{strange} cannot be read.", path=strange)
    assert rich_status(error).message == "/run/? cannot be read."
    assert refusal(error).metadata["path"] == "/run/?"
