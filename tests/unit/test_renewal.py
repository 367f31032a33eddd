"""Renewal information (RFC 9773): names, moments, and when to ask again."""

import datetime
from collections import Counter

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from hypothesis import given
from hypothesis import strategies as st

from kmsd.errors import Invalid, PeerRefused, Unavailable
from kmsd.renewal import (
    AFTER_FAILURE,
    LATEST,
    SOONEST,
    TRIES,
    Window,
    certificate_id,
    next_question,
    next_try,
    renewal_moment,
)
from tests.unit.sti import new_key

AKI = bytes.fromhex("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")
MOMENT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

times = st.integers(-(2**40), 2**40)
windows = st.builds(
    lambda start, length: Window(start, start + length), times, st.integers(1, 2**34)
)


def certificate(serial: int, aki: x509.AuthorityKeyIdentifier | None) -> bytes:
    key, name = new_key(), x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, MOMENT, MOMENT)
    if aki:
        builder = builder.add_extension(aki, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def by_key(key_identifier: bytes | None) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier(key_identifier, None, None)


@pytest.mark.parametrize(
    ("serial", "name"),
    [
        (0x87654321, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"),  # RFC 9773 section 4.1
        (0x07654321, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.B2VDIQ"),
        (0x80, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIA"),
        (0x7F, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.fw"),
        (2**159 - 1, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.f_________________________8"),
    ],
)
def test_a_certificates_name_keeps_the_zero_octet_of_its_serial(serial: int, name: str) -> None:
    assert certificate_id(certificate(serial, by_key(AKI))) == name


@pytest.mark.parametrize(
    "aki",
    [
        None,
        by_key(b""),
        x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(x509.Name([]))], 1),
    ],
    ids=["no AKI", "empty", "by issuer and serial"],
)
def test_a_certificate_without_a_key_identifier_has_no_name(
    aki: x509.AuthorityKeyIdentifier | None,
) -> None:
    assert certificate_id(certificate(1, aki)) == ""


def test_a_certificate_with_a_negative_serial_has_no_name() -> None:
    der = certificate(0x7F, by_key(AKI)).replace(b"\x02\x01\x7f", b"\x02\x01\xff", 1)
    with pytest.warns(CryptographyDeprecationWarning):
        assert certificate_id(der) == ""


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(Invalid) as refused:
        certificate_id(b"0")
    assert refused.value.reason == "CERTIFICATE_MALFORMED"


@pytest.mark.parametrize("end", [-1, 0, 9, 10])
def test_a_window_ends_after_it_begins(end: int) -> None:
    with pytest.raises(Invalid) as refused:
        Window(10, end)
    assert refused.value.reason == "RENEWAL_WINDOW_INVALID"


@given(windows, st.binary(max_size=40))
def test_the_moment_is_inside_and_the_same_each_time(window: Window, seed: bytes) -> None:
    moment = renewal_moment(window, seed)
    assert window.start <= moment < window.end
    assert renewal_moment(Window(window.start, window.end), seed) == moment


@given(windows, st.integers(-(2**40), 2**40), st.binary(max_size=40))
def test_a_window_that_is_moved_takes_its_moment_along(
    window: Window, by: int, seed: bytes
) -> None:
    moved = Window(window.start + by, window.end + by)
    assert renewal_moment(moved, seed) == renewal_moment(window, seed) + by


@given(windows, windows, st.binary(max_size=40))
def test_in_a_longer_window_it_is_not_sooner(one: Window, other: Window, seed: bytes) -> None:
    short, long = sorted((one.end - one.start, other.end - other.start))
    assert renewal_moment(Window(0, short), seed) <= renewal_moment(Window(0, long), seed)


def test_ten_thousand_credentials_spread_evenly() -> None:
    window = Window(1_800_000_000, 1_800_086_400)
    moments = [renewal_moment(window, f"credential {number}".encode()) for number in range(10_000)]
    hours = Counter((moment - window.start) // 3600 for moment in moments)
    assert len(hours) == 24
    expected = 10_000 / 24
    # 23 degrees of freedom: even dice exceed 50 once in a thousand throws; these are thrown once.
    assert sum((count - expected) ** 2 / expected for count in hours.values()) < 50


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, AFTER_FAILURE),
        (0.0, SOONEST),
        (59.9, SOONEST),
        (61.5, 61),
        (21_600.0, 21_600),
        (1e9, LATEST),
    ],
)
def test_the_server_is_asked_again_when_it_says_within_reason(
    asked: float | None, seconds: int
) -> None:
    assert next_question(asked) == seconds


def test_no_answer_is_tried_again_soon_and_then_seldom() -> None:
    error = Unavailable("ACME_TIMEOUT", "It did not answer.")
    pauses = [next_try(error, failures) for failures in range(1, TRIES + 3)]
    assert pauses == [60, 120, 240, AFTER_FAILURE, AFTER_FAILURE]


def test_who_asked_for_patience_is_not_tried_sooner() -> None:
    limited = Unavailable("ACME_RATE_LIMITED", "Slow down.", retry_after=3_600.0)
    assert next_try(limited, 1) == 3_600
    assert next_try(limited, TRIES + 1) == AFTER_FAILURE
    assert next_try(Unavailable("X_Y", "Slow down.", retry_after=80_000.0), 9) == 80_000


@given(st.integers(1, 10**6), st.floats(0, 1e9))
def test_a_try_is_never_put_off_for_more_than_a_day(failures: int, asked: float) -> None:
    pause = next_try(Unavailable("ACME_TIMEOUT", "No.", retry_after=asked), failures)
    assert SOONEST <= pause <= LATEST


def test_a_refusal_is_not_tried_again_for_six_hours() -> None:
    assert next_try(PeerRefused("ACME_NOT_FOUND", "No.", peer="sti-ca"), 1) == AFTER_FAILURE
