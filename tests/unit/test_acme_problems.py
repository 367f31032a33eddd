"""Errors made of what a server says, whatever it says."""

from hypothesis import given
from hypothesis import strategies as st

from kmsd.acme import problems
from kmsd.acme.messages import verbatim
from kmsd.errors import PeerRefused, Unavailable
from kmsd.retryafter import LONGEST

NOW = 1_800_000_000.0


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
    error = problems.refusal("ca", "newOrder", status, headers, body, NOW)
    assert isinstance(error, PeerRefused | Unavailable)
    assert error.message.isprintable()
    assert len(error.message) < 500
    if isinstance(error, Unavailable):
        assert 0.0 <= error.retry_after <= LONGEST


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
    error = problems.refusal("ca", "challenge", 400, {}, document.encode(), NOW)
    assert isinstance(error, PeerRefused)
    assert "eyJ" not in f"{error}{error.problem}"


def test_what_would_move_a_terminals_cursor_is_not_kept() -> None:
    assert verbatim("a\x1b[2J\x9b2J\x00\r\n\tz".encode()) == "a\ufffd[2J\ufffd2J\ufffd\r\n\tz"


def test_an_order_that_died_without_a_word_says_so() -> None:
    error = problems.order_invalid("ca", "https://ca.example/order", "", [], judged=False)
    assert error.message == "STI-CA ca gave up the order."
    assert error.next_step


def test_the_next_step_is_about_what_was_asked() -> None:
    body = b'{"type": "urn:ietf:params:acme:error:unauthorized"}'
    steps = [
        problems.refusal("ca", resource, 403, {}, body, NOW).next_step
        for resource in ("newOrder", "revokeCert", "keyChange")
    ]
    assert len(set(steps)) == 3
    assert "certificate's own key" in steps[1]
