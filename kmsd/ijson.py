"""JSON without two readings (I-JSON, RFC 7493), and its one canonical text (RFC 8225 section 9).

An object has each key once, text can be UTF-8, numbers are finite. Python's `json` is laxer.
"""

import json


class NotIJson(Exception):
    """The text is no I-JSON; says why in a few words."""


def canonical(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read(text: str | bytes) -> object:
    """The value of a JSON text (bytes: UTF-8). Raises NotIJson."""
    try:
        characters = text.decode() if isinstance(text, bytes) else text
        value: object = json.loads(
            characters, object_pairs_hook=_unique, parse_constant=_no_constant
        )
        # Escapes can spell surrogates that UTF-8 cannot carry, exponents what no float can.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise NotIJson("it is not JSON") from error
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotIJson("a key occurs twice in an object")
    return members


def _no_constant(constant: str) -> object:
    raise NotIJson(f"{constant} is not JSON")
