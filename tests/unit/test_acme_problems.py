"""Errors made of what a server says, whatever it says."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.acme import problems
from kmsd.acme.messages import verbatim
from kmsd.errors import PeerRefused, Unavailable

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "9" * 400}, 86400.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90.0),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0.0),
        ({"retry-after": format_datetime(NOW + timedelta(days=400), usegmt=True)}, 86400.0),
        (
            {
                "retry-after": format_datetime(NOW + timedelta(hours=1, seconds=30), usegmt=True),
                "date": format_datetime(NOW + timedelta(hours=1), usegmt=True),
            },
            30.0,
        ),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert problems.retry_after(headers, NOW.timestamp()) == seconds


@given(
    status=st.integers(300, 599),
    body=st.binary(max_size=300) | st.from_regex(r'\{"type":.{0,40}\}').map(str.encode),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "date", "location"]),
        st.text()
        | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+(:\d+)? (GMT|[+-]\d+)"),
    ),
)
def test_whatever_is_said_becomes_one_sentence_of_ours(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    error = problems.refusal("ca", "newOrder", status, headers, body, 1_800_000_000.0)
    assert isinstance(error, PeerRefused | Unavailable)
    assert error.message.isprintable()
    assert len(error.message) < 500
    if isinstance(error, Unavailable):
        assert 0.0 <= error.retry_after <= problems.LONGEST_RETRY


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), max_size=100))
def test_a_document_is_kept_word_for_word(document: str) -> None:
    assert verbatim(document.encode()) == document


def test_a_document_with_a_private_key_in_it_is_not_kept() -> None:
    leaked = b"-----BEGIN EC PRIVATE KEY-----\nTOPSECRET\n-----END EC PRIVATE KEY-----\n"
    assert "TOPSECRET" not in verbatim(b'{"detail": "' + leaked + b'"}')


def test_an_spc_token_that_an_sti_ca_repeats_is_not_kept() -> None:
    document = (
        '{"type": "malformed", "detail": "bad token eyJhbGciOiJFUzI1NiJ9.eyJleHAiOjF9.c2ln!"}'
    )
    kept = '{"type": "malformed", "detail": "bad token [removed]!"}'
    assert verbatim(document.encode()) == kept
    error = problems.refusal("ca", "challenge", 400, {}, document.encode(), NOW.timestamp())
    assert isinstance(error, PeerRefused)
    assert "eyJ" not in f"{error}{error.problem}"


def test_what_would_move_a_terminals_cursor_is_not_kept() -> None:
    assert verbatim("a\x1b[2J\x9b2J\x00\r\n\tz".encode()) == "a\ufffd[2J\ufffd2J\ufffd\r\n\tz"


def test_an_order_that_died_without_a_word_says_so() -> None:
    error = problems.order_invalid("ca", "https://ca.example/order", [])
    assert error.message == "STI-CA ca gave up the order."
    assert error.next_step
