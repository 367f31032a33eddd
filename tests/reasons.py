"""Every reason that kmsd and kmsctl can give, read from their source.

    python -m tests.reasons > kmsd/reasons.md

writes the table for people; `tests/unit/test_reasons.py` holds it to the source. A reason is a
literal in UPPER_SNAKE_CASE that is the first argument of an error, or that a helper or a table
makes an error of. Literals of that form which are none are in `NO_REASONS`, by intent.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kmsd import errors

SOURCE = Path(__file__).parents[1] / "kmsd"
ERRORS = {
    name: kind.code
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.KmsdError)
}
FORM = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
FOREIGN = re.compile(r"CK[AR]_|KMSD_|PKCS11_")
NO_REASONS = {
    *ERRORS.values(),
    "ANOTHER_USER_ALREADY_LOGGED_IN",  # python-pkcs11's spelling of return codes
    "FUNCTION_CANCELLED",
    "TOKEN_NOT_RECOGNISED",
    "DEST_LIMIT",
    "IDENTITY_LIMIT",
    "CREDENTIALS_DIRECTORY",  # environment variables
    "NO_COLOR",
}
HEADER = """\
# Reasons

What programs read: `reason` in google.rpc.ErrorInfo (domain `kmsd`), in the refusals of a frame, in
`kmsctl --output json`, in alarms and in the log. Stable across releases. The sentence is for people
and may change; `…` stands for what varies. Without a status: an alarm, or one that a peer's answer
decides. Written by `python -m tests.reasons > kmsd/reasons.md`.

| Reason | gRPC status | Said in | Sentence |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Reason:
    """One place that gives a reason. status, sentence: empty when the source does not show it."""

    name: str
    status: str
    place: str
    sentence: str


def table() -> str:
    """kmsd/reasons.md as it has to be."""
    first: dict[str, Reason] = {}
    for reason in reasons():
        known = first.get(reason.name)
        if known is None or _says(reason) > _says(known):
            first[reason.name] = reason
    return HEADER + "".join(
        f"| `{one.name}` | {one.status} | `{one.place}` | {one.sentence} |\n"
        for _, one in sorted(first.items())
    )


def reasons() -> Iterator[Reason]:
    """Every place that gives one, file by file."""
    trees = {
        path.relative_to(SOURCE.parent).as_posix(): ast.parse(path.read_text())
        for path in sorted(SOURCE.rglob("*.py"))
        if "lab" not in path.parts
    }
    makers = _makers(trees)
    for place, tree in trees.items():
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                around = parents[node]
                kind = _kind(node, around, makers)
                if kind or _is_reason(node.value):
                    yield Reason(node.value, ERRORS.get(kind, ""), place, _sentence(node, around))


def _says(reason: Reason) -> tuple[bool, bool]:
    """A place that makes the error tells more than one that only names it."""
    return bool(reason.status), bool(reason.sentence)


def _is_reason(text: str) -> bool:
    return bool(FORM.fullmatch(text)) and not FOREIGN.match(text) and text not in NO_REASONS


def _makers(trees: dict[str, ast.Module]) -> dict[str, tuple[int, str]]:
    """Functions that make an error of a reason they are given: its position, and the class."""
    found = {}
    for tree in trees.values():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [argument.arg for argument in function.args.args if argument.arg != "self"]
                for call in ast.walk(function):
                    if (kind := _error_class(call)) and isinstance(call, ast.Call) and call.args:
                        given = call.args[0]
                        if isinstance(given, ast.Name) and given.id in names:
                            found[function.name] = (names.index(given.id), kind)
    return found


def _kind(node: ast.Constant, around: ast.AST, makers: dict[str, tuple[int, str]]) -> str:
    """The error class that `node` becomes the reason of; empty when that is not to be seen."""
    match around:
        case ast.Call(func=function, args=[*given]) if node in given:
            if (kind := _error_class(around)) and given[0] is node:
                return kind
            position, kind = makers.get(_name(function), (-1, ""))
            return kind if given.index(node) == position and _is_reason(str(node.value)) else ""
        case ast.Tuple(elts=[ast.Name(id=kind), *_]) if kind in ERRORS:
            return kind if _is_reason(str(node.value)) else ""
        case _:
            return ""


def _error_class(node: ast.AST) -> str:
    name = _name(node.func) if isinstance(node, ast.Call) else ""
    return name if name in ERRORS else ""


def _name(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _sentence(node: ast.Constant, around: ast.AST) -> str:
    """The first text with a space in it after the reason."""
    match around:
        case ast.Call(args=[*given]) | ast.Tuple(elts=[*given]) if node in given:
            texts = (_text(one) for one in given[given.index(node) + 1 :])
            found = next((text for text in texts if " " in text), "")
            return " ".join(found.split()).replace("|", r"\|")
    return ""


def _text(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) or "…" for part in parts)
        case ast.BinOp(left=left, right=right):
            return _text(left) + _text(right)
    return ""


if __name__ == "__main__":
    sys.stdout.write(table())
