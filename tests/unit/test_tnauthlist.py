"""TNAuthList against the published vectors, and against everything malformed."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.errors import Invalid
from kmsd.settings import Encoding
from kmsd.tnauthlist import (
    LIMIT,
    Entry,
    One,
    Range,
    Spc,
    TnAuthList,
    check_spc,
    decode,
    encode,
    from_text,
    spc_list,
    to_text,
)

# Entries, DER, base64url without padding, base64 with.
VECTORS: list[tuple[tuple[Entry, ...], str, str, str]] = [
    ((Spc("1234"),), "3008a006160431323334", "MAigBhYEMTIzNA", "MAigBhYEMTIzNA=="),
    ((Spc("709J"),), "3008a00616043730394a", "MAigBhYENzA5Sg", "MAigBhYENzA5Sg=="),
    ((Spc("818H"),), "3008a006160438313848", "MAigBhYEODE4SA", "MAigBhYEODE4SA=="),
    (
        (One("12125551824"),),
        "300fa20d160b3132313235353531383234",
        "MA-iDRYLMTIxMjU1NTE4MjQ",
        "MA+iDRYLMTIxMjU1NTE4MjQ=",
    ),
    (
        (Range("12125551000", 1000),),
        "3015a1133011160b3132313235353531303030020203e8",
        "MBWhEzARFgsxMjEyNTU1MTAwMAICA-g",
        "MBWhEzARFgsxMjEyNTU1MTAwMAICA+g=",
    ),
    (
        (Spc("1234"), Range("12125551500", 100), One("12125551824")),
        "302ba006160431323334a1123010160b3132313235353531353030020164"
        "a20d160b3132313235353531383234",
        "MCugBhYEMTIzNKESMBAWCzEyMTI1NTUxNTAwAgFkog0WCzEyMTI1NTUxODI0",
        "MCugBhYEMTIzNKESMBAWCzEyMTI1NTUxNTAwAgFkog0WCzEyMTI1NTUxODI0",
    ),
    (
        (Spc("bogus"), Range("5715551212", 788), One("7035551212")),
        "302ba0071605626f677573a1123010160a3537313535353132313202020314"
        "a20c160a37303335353531323132",
        "MCugBxYFYm9ndXOhEjAQFgo1NzE1NTUxMjEyAgIDFKIMFgo3MDM1NTUxMjEy",
        "MCugBxYFYm9ndXOhEjAQFgo1NzE1NTUxMjEyAgIDFKIMFgo3MDM1NTUxMjEy",
    ),
]


@pytest.mark.parametrize(("entries", "der", "url_text", "text"), VECTORS)
def test_published_vectors_hold_in_every_direction(
    entries: tuple[Entry, ...], der: str, url_text: str, text: str
) -> None:
    raw = bytes.fromhex(der)
    assert encode(TnAuthList(entries)) == raw
    assert decode(raw) == TnAuthList(entries)
    assert to_text(raw, Encoding.BASE64URL) == url_text
    assert to_text(raw, Encoding.BASE64) == text
    assert from_text(url_text) == from_text(text) == raw


def test_the_list_of_one_spc_is_the_vector_of_the_standard() -> None:
    assert spc_list("1234").hex() == "3008a006160431323334"


def test_text_without_its_padding_is_read_in_both_alphabets() -> None:
    assert from_text("MA+iDRYLMTIxMjU1NTE4MjQ") == from_text("MA-iDRYLMTIxMjU1NTE4MjQ=")


def test_elements_after_the_count_of_a_range_are_passed_over() -> None:
    extended = bytes.fromhex("3010a10e300c160431323334020102020105")
    assert decode(extended) == TnAuthList((Range("1234", 2),))


MALFORMED = {
    "nothing at all": "",
    "bare characters of an SPC": "31323334",
    "half a header": "30",
    "no entries": "3000",
    "trailing byte": "3008a00616043132333400",
    "length in two bytes": "308108a006160431323334",
    "indefinite length": "3080a0061604313233340000",
    "SPC with an implicit tag": "3006800431323334",
    "SPC as UTF8String": "3008a0060c0431323334",
    "SPC beyond IA5": "3008a0061604313233c4",
    "SPC of no characters": "3004a0021600",
    "unknown tag": "3008a306160431323334",
    "trailing bytes in an entry": "300aa0081604313233340500",
    "number with a letter": "3008a206160431323341",
    "number of 16 digits": "3014a212161031323334353637383930313233343536",
    "range with a star in its start": "300da10b3009160431322a34020102",
    "range of one": "300da10b3009160431323334020101",
    "range without a count": "300aa1083006160431323334",
    "range whose count is text": "300da10b3009160431323334160132",
    "range with a padded count": "300ea10c300a16043132333402020002",
    "range past the last number of its length": "300da10b3009160439393939020102",
    "range that is no sequence": "300ba109160431323334020102",
    "longer than the limit": "30" * (LIMIT + 1),
}


@pytest.mark.parametrize("der", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_der_is_refused(der: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode(bytes.fromhex(der))
    assert caught.value.reason == "TNAUTHLIST_INVALID"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "MAigBhYEMTIzNA=",  # one = of two
        "MAigBhYEMTIzN",  # no length of base64
        "MAigBhYEMTIzNB",  # bits set after the last byte
        "MA-iDRYLMTIxMjU1NTE4Mj+",  # both alphabets at once
        "MAigBhYEMTIzNA\n",
        "MAig BhYEMTIzNA",
        "MTIzNA",  # base64 of "1234"
        "МAigBhYEMTIzNA",  # a Cyrillic first letter
        "A" * (LIMIT * 2),
    ],
)
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        from_text(text)
    assert caught.value.reason == "TNAUTHLIST_INVALID"


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (Spc(""),),
        (Spc("é"),),
        (One(""),),
        (One("+1"),),
        (Range("12#4", 2),),
        (Range("1234", 1),),
        (Range("9999", 2),),
    ],
)
def test_what_could_not_be_decoded_is_not_encoded(entries: tuple[Entry, ...]) -> None:
    with pytest.raises(Invalid):
        encode(TnAuthList(entries))


@pytest.mark.parametrize("text", ["", "709j", "70 9", "1234\n", "A" * 17, "१२३४", "12-4"])
def test_an_spc_is_digits_and_upper_case_letters(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_spc(text)
    assert caught.value.reason == "SPC_INVALID"
    assert len(str(caught.value)) < 150
    with pytest.raises(Invalid):
        spc_list(text)


SPCS = st.from_regex(r"[\x01-\x7f]{1,8}", fullmatch=True).map(Spc)
ONES = st.from_regex(r"[0-9#*]{1,15}", fullmatch=True).map(One)
RANGES = st.builds(Range, st.from_regex(r"[0-8][0-9]{3,14}", fullmatch=True), st.integers(2, 900))
LISTS = st.lists(SPCS | ONES | RANGES, min_size=1, max_size=6).map(tuple).map(TnAuthList)


@given(LISTS, st.sampled_from(Encoding))
def test_lists_survive_der_and_both_texts(value: TnAuthList, encoding: Encoding) -> None:
    der = encode(value)
    assert decode(der) == value
    assert from_text(to_text(der, encoding)) == der


@given(st.binary(max_size=64) | st.binary(max_size=30).map(lambda tail: b"\x30\x08\xa0" + tail))
def test_arbitrary_bytes_are_a_list_or_invalid(der: bytes) -> None:
    with suppress(Invalid):
        decode(der)


@given(LISTS, st.data())
def test_one_changed_byte_is_another_list_or_invalid(
    value: TnAuthList, data: st.DataObject
) -> None:
    der = bytearray(encode(value))
    place = data.draw(st.integers(0, len(der) - 1))
    der[place] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode(bytes(der))
    except Invalid:
        return
    assert changed != value


@given(st.text(max_size=60))
def test_arbitrary_text_is_a_list_or_invalid(text: str) -> None:
    with suppress(Invalid):
        from_text(text)
