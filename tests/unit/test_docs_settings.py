"""kmsd.toml(5) is made from systemd/kmsd.toml, which test_config holds to the settings' types.

After a change of a setting: `GOLDEN=write pytest tests/unit/test_docs_settings.py`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "systemd" / "kmsd.toml"
PAGE = ROOT / "kmsd" / "kmsd.toml.5"

HEAD = r""".\" Made from systemd/kmsd.toml by tests/unit/test_docs_settings.py; change that instead.
.Dd November 21, 2026
.Dt KMSD.TOML 5
.Os
.Sh NAME
.Nm kmsd.toml
.Nd settings of kmsd, the key room of a SHAKEN provider
.Sh DESCRIPTION
All processes of
.Xr kmsd 8
on a host, and
.Xr kmsctl 1 ,
read this TOML file.
Unknown keys are refused.
Relative paths are relative to the folder of the file.
.Pp
A secret is never written here, only where it is: the path of a file that its owner alone can
read, or
.Li credential:NAME
for a systemd credential
.Pq Li LoadCredential=NAME:/path No in the unit .
.Pp
After a change:
.Ic kmsd check ,
then restart the units.
Settings that say
.Dq Default
may be left out.
"""
TAIL = r""".Sh FILES
.Bl -tag -width Ds
.It Pa /etc/kmsd/kmsd.toml
Where it is looked for, unless
.Fl -config
or
.Ev KMSD_CONFIG
say otherwise.
.El
.Sh SEE ALSO
.Xr kmsctl 1 ,
.Xr systemd.exec 5 ,
.Xr kmsd 8
"""


@dataclass
class Table:
    """A table of the example. settings: name, value, whether that is the default, what it is."""

    name: str
    about: str
    settings: list[tuple[str, str, bool, str]] = field(default_factory=list)


def tables(example: str) -> Iterator[Table]:
    """The tables of the example in order, each once; the first is that above all tables."""
    _, _, rest = example.partition("\n\n")
    seen, words = {""}, list[str]()
    table = Table("", "")
    for line in rest.splitlines():
        heading = re.fullmatch(r"(?:# )?(\[[\w.\[\]-]+\])", line)
        setting = re.fullmatch(r"(# )?(\w+) = (.+)", line)
        if heading:
            yield table
            table = Table(heading[1], " ".join(words))
        elif setting:
            given = (setting[2], setting[3], bool(setting[1]), " ".join(words))
            table.settings.append(given)
        if heading or setting or not line:
            words = []
        else:
            words.append(line.removeprefix("# "))
        if heading and heading[1] in seen:
            break  # a further example of an array of tables
        seen.add(table.name)
    else:
        yield table


def page(example: str) -> str:
    """The manual page in mdoc."""
    return HEAD + "".join(map(section, tables(example))) + TAIL


def section(table: Table) -> str:
    heading = f'.Ss "{table.name}"' if table.name else ".Ss Above all tables"
    listed = "".join(item(*setting) for setting in table.settings)
    return f"{heading}\n{prose(table.about)}.Bl -tag -width Ds\n{listed}.El\n"


def item(name: str, value: str, default: bool, about: str) -> str:
    if default and "Default:" in about:  # in words, because it depends on other settings
        return f".It Ic {name}\n{prose(about)}"
    kind = "Default" if default else "Example"
    shown = value.replace("\\", r"\e").replace('"', r"\(dq")
    return f'.It Ic {name}\n{prose(about)}{kind}:\n.Li "{shown}"\n'


def prose(text: str) -> str:
    """A new line for each sentence, as mdoc wants it; nothing that roff would take for its own."""
    if not text:
        return ""
    escaped = text.replace("\\", r"\e")
    lines = re.sub(r"(?<=[.:;]) (?=[A-Z`])", "\n", escaped)
    return re.sub(r"^(?=[.'])", r"\&", lines, flags=re.M) + "\n"


def test_the_manual_page_is_that_of_the_settings() -> None:
    made = page(EXAMPLE.read_text("utf-8"))
    if os.environ.get("GOLDEN") == "write":
        PAGE.write_text(made, "utf-8")
    assert PAGE.read_text("utf-8") == made


def test_every_table_of_the_example_is_in_it() -> None:
    text = EXAMPLE.read_text("utf-8")
    named = set(re.findall(r"^(?:# )?(\[[\w.\[\]-]+\])$", text, flags=re.M))
    assert {table.name for table in tables(text)} == named | {""}
