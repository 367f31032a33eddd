"""The API's sources: each thing one can name has its own comment, and the code is theirs."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from kmsapi.v1 import admin_pb2, signing_pb2

PROTOS = Path(__file__).parents[2] / "protos"
FILES = (admin_pb2.DESCRIPTOR, signing_pb2.DESCRIPTOR)

BLOCK = re.compile(r"(?:message|enum|service|oneof) (\w+) \{")
MEMBER = re.compile(r"rpc (\w+)\(|(?:[\w.]+|repeated [\w.]+|optional [\w.]+|map<.+>) (\w+) = \d+")
VALUE = re.compile(r"(\w+) = -?\d+")
COMMENT = re.compile(r"//\s*\S")

SMALL = """
// A thing.
message Thing {
  // How many.
  uint32 many = 1;
  uint32 grouped = 2;
  uint32 trailing = 3;  // Not above.
  // Not directly above.

  map<string, bool> apart = 4;
  //
  string empty = 5;
  // One of these.
  oneof kind {
    bool yes = 6;
  }
}
enum Sort { // Not above.
  // None.
  SORT_UNSPECIFIED = 0;
  SORT_OTHER = 1;
}
service Things {
  rpc Get(Thing) returns (Thing);
}
"""


def declared(source: str) -> Iterator[tuple[str, bool]]:
    """Each name that a .proto declares, in its block, and whether a comment is right above it."""
    blocks: list[str] = []
    above = ""
    for line in map(str.strip, source.splitlines()):
        block = BLOCK.match(line)
        member = MEMBER.match(line) or VALUE.match(line)
        if block or member:
            name = block[1] if block else next(filter(None, member.groups())) if member else ""
            yield ".".join([*blocks, name]), bool(COMMENT.match(above))
        if block and not line.endswith("}"):
            blocks.append(block[1])
        elif line == "}":
            blocks.pop()
        above = line


def uncommented(source: str) -> list[str]:
    return [name for name, commented in declared(source) if not commented]


def named(file: FileDescriptor) -> Iterator[str]:
    """The same names as protoc knows them; a field of a oneof is in the oneof's block."""
    for message in file.message_types_by_name.values():
        yield from _named(message)
    for enum in file.enum_types_by_name.values():
        yield enum.name
        yield from (f"{enum.name}.{value.name}" for value in enum.values)
    for service in file.services_by_name.values():
        yield service.name
        yield from (f"{service.name}.{method.name}" for method in service.methods)


def _named(message: Descriptor) -> Iterator[str]:
    yield message.name
    yield from (f"{message.name}.{oneof.name}" for oneof in message.oneofs)
    for field in message.fields:
        inside = f"{field.containing_oneof.name}." if field.containing_oneof else ""
        yield f"{message.name}.{inside}{field.name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_everything_in_a_proto_has_its_own_comment_above_it(file: FileDescriptor) -> None:
    bare = uncommented((PROTOS / file.name).read_text())
    assert not bare, f"{file.name}: no comment right above {', '.join(bare)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_declaration_escapes_the_look_for_comments(file: FileDescriptor) -> None:
    found = [name for name, _ in declared((PROTOS / file.name).read_text())]
    assert sorted(found) == sorted(named(file))


def test_a_comment_on_a_group_behind_apart_or_empty_does_not_count() -> None:
    assert uncommented(SMALL) == [
        "Thing.grouped",
        "Thing.trailing",
        "Thing.apart",
        "Thing.empty",
        "Thing.kind.yes",
        "Sort",
        "Sort.SORT_OTHER",
        "Things",
        "Things.Get",
    ]


def test_the_generated_code_is_what_the_protos_say() -> None:
    check: list[str | Path] = [PROTOS / "generate", "--check"]
    ended = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
