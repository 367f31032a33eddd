"""Canonical numbers, URIs and URLs: RFC 8224 sections 8.3 and 8.5."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.canonical import (
    URI_LIMIT,
    URL_LIMIT,
    canonical_dest_tn,
    canonical_tn,
    canonical_uri,
    https_url,
    x5u_url,
)
from kmsd.errors import Invalid


@pytest.mark.parametrize(
    "text",
    ["12155551212", "+12155551212", "+1-(215)-555-1212", "+1 215 555 1212", "1.215.555.1212"],
)
def test_separators_and_plus_are_dropped(text: str) -> None:
    assert canonical_tn(text) == canonical_dest_tn(text) == "12155551212"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "-",
        "0125551212",
        "+0",
        "1234567890123456",
        "tel:+12155551212",
        "1215555121x",
        "++1",
        "1+1",
        "12155551212\n",
        "１２１５５５５１２１２",
        "१२१५",
        '1"',
        "1" + " " * 100,
    ],
)
def test_what_is_no_e164_number_is_refused(text: str) -> None:
    for canonical in (canonical_tn, canonical_dest_tn):
        with pytest.raises(Invalid) as caught:
            canonical(text, "orig")
        assert caught.value.reason == "TN_INVALID"
        assert caught.value.metadata == {"field": "orig"}


def test_service_numbers_can_be_called_but_do_not_call() -> None:
    assert canonical_dest_tn("#250") == "#250"
    assert canonical_dest_tn("*67 (215)") == "*67215"
    with pytest.raises(Invalid):
        canonical_tn("#250")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (
            "SIP:Al%69ce:secret@EXAMPLE.com:5060;transport=tcp?Subject=x",
            "sip:alice@example.com",
        ),
        ("sips:Bob@[2001:DB8::1]:5061", "sips:bob@[2001:db8::1]"),
        ("sip:a%2fb%41%C3%a9@h", "sip:a%2Fba%C3%A9@h"),
        ("sip:+1;x=y@example.com.;user=phone", "sip:+1;x=y@example.com."),
        ("sip:anonymous@anonymous.invalid", "sip:anonymous@anonymous.invalid"),
        ("URN:Service:SOS.police", "urn:service:sos.police"),
    ],
)
def test_uris_lose_all_but_scheme_user_and_host(text: str, canonical: str) -> None:
    assert canonical_uri(text) == canonical
    assert canonical_uri(canonical) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sip:example.com",
        "sip:@example.com",
        "tel:+12155551212",
        "https://example.com",
        "sip:a@b@c",
        "sip:a%zz@b",
        "sip:a b@c",
        'sip:"@c',
        "sip:a@b\r\n",
        "sip:é@b",
        "\u017fip:alice@example.com",  # a long s, which has an S as its capital
        "sip:\u212aate@example.com",  # the Kelvin sign, which has a k as its small letter
        "sip:alice@exam\u017fple.com",
        "sip:\u0130x@example.com",
        "urn:\u017fervice:sos",
        "sip:a@-",
        "urn:service:",
        "sip:" + "a" * URI_LIMIT + "@b",
    ],
)
def test_what_is_no_sip_uri_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        canonical_uri(text)
    assert caught.value.reason == "URI_INVALID"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["https://example.com", "https://h:8443/a/b.pem?x=1", "https://[::1]/%20"]
)
def test_https_urls_are_taken_as_they_are(text: str) -> None:
    assert https_url(text, "icn") == text


@pytest.mark.parametrize(
    "text",
    [
        "http://example.com/",
        "https:///x",
        "https://u@h/",
        "https://h/a b",
        "https://h/<",
        'https://h/"',
        "https://h/é",
        "https://h:999999/",
        "https://h/" + "a" * URL_LIMIT,
    ],
)
def test_what_is_no_https_url_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="https URL"):
        https_url(text, "icn")
    with pytest.raises(Invalid, match="x5u"):
        x5u_url(text)


@pytest.mark.parametrize("text", ["https://h/a?b", "https://h/a#b", "https://h/a;b", "https://h"])
def test_an_x5u_has_a_path_and_nothing_after_it(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        x5u_url(text)
    assert caught.value.reason == "X5U_INVALID"
    assert x5u_url("https://cert.example.org:8443/passport.cer")


@given(st.text(max_size=40) | st.from_regex(r"sip:[^@]{1,8}@[a-z.]{1,8}.{0,8}"))
def test_arbitrary_text_is_canonical_and_plain_json_or_invalid(text: str) -> None:
    for canonical in (canonical_tn, canonical_dest_tn, canonical_uri):
        with suppress(Invalid):
            value = canonical(text)
            assert canonical(value) == value
            assert json.dumps(value) == f'"{value}"'
