"""Whether a TOML table has the shape of a settings type: keys and types, all faults at once.

msgspec refuses at the first fault and speaks of Python; an operator wants all of them, by
the path that stands in the file. What the values mean is `rules`' business.
"""

import difflib
import json
import re
import types
from collections.abc import Iterator
from datetime import date, time
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec


def faults(kind: Any, value: object, path: str = "") -> Iterator[str]:
    """One line for each place where `value`, as TOML gives it, is not of `kind`.

    kind: a msgspec structure, or the type of a field of one. path: of the value, dotted.
    Values are never shown: one of them may be a secret in the wrong place.
    """
    alternatives = [one for one in _alternatives(kind) if one is not types.NoneType]
    match get_origin(kind), value:
        case _, _ if kind is Any:
            return
        case _, dict() if len(alternatives) == 1 and _is_table(alternatives[0]):
            yield from _table(alternatives[0], value, path)
        case origin, dict() if origin is dict:
            for key, item in value.items():
                yield from faults(get_args(kind)[1], item, below(path, key))
        case origin, list() if origin is tuple:
            for index, item in enumerate(value):
                yield from faults(get_args(kind)[0], item, f"{path}[{index}]")
        case _:
            yield from _leaf(kind, alternatives, value, path)


def below(path: str, key: str) -> str:
    """The path of a key in the table at `path`, as one would write it in TOML."""
    shown = key if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) else json.dumps(key[:64])
    return f"{path}.{shown}" if path else shown


def similar(word: str, known: Iterator[str] | list[str]) -> str:
    """`; did you mean "..."?` when a known word is near, else nothing."""
    near = difflib.get_close_matches(word[:64], list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _table(kind: type[msgspec.Struct], value: dict[str, Any], path: str) -> Iterator[str]:
    hints = get_type_hints(kind)
    for key, item in value.items():
        if key in hints:
            yield from faults(hints[key], item, below(path, key))
        else:
            yield f"{below(path, key)}: unknown key{similar(key, list(hints))}"
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in value:
            yield f"{below(path, field.name)}: is missing"


def _leaf(kind: Any, alternatives: list[Any], value: object, path: str) -> Iterator[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        wanted = " or ".join(map(_wanted, alternatives))
        hint = ""
        if isinstance(value, str) and _is_choice(kind):
            hint = similar(value, list(kind))
        yield f"{path}: must be {wanted}, not {_found(value)}{hint}"


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_choice(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, StrEnum)


def _wanted(kind: Any) -> str:
    if _is_choice(kind):
        return "one of " + ", ".join(f'"{one}"' for one in kind)
    if _is_table(kind) or get_origin(kind) is dict:
        return "a table"
    if get_origin(kind) is tuple:
        return "an array"
    names = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
    return names[kind]


def _found(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case str():
            return "this string"
        case int():
            return "an integer"
        case float():
            return "a number with a fraction"
        case dict():
            return "a table"
        case list():
            return "an array"
        case date() | time():
            return "a date or time"
    return "that"
