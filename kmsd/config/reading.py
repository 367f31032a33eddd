"""From the bytes of kmsd.toml to a `Configuration`."""

import os
import re
import tomllib
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kmsd.config import files, rules, shape
from kmsd.config.secrets import CREDENTIAL
from kmsd.errors import Misconfigured
from kmsd.settings import Configuration, Settings, Tls

LIMIT = 16 << 20
"""Bytes of kmsd.toml, at most. Ten thousand profiles are one to two million."""

MOST_PROBLEMS = 100

S = TypeVar("S", bound=Settings)


class InvalidConfiguration(Misconfigured):
    """kmsd.toml can be read but not used. problems: one line each, `path: what is wrong`."""

    def __init__(self, path: Path, problems: tuple[str, ...]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__("CONFIG_INVALID", f"{path} has {count}:{lines}", path=str(path))
        self.problems = problems


def load(path: str | os.PathLike[str]) -> Configuration:
    """The configuration in the TOML file at `path`, checked, with absolute paths.

    `keyring`, `store.url`, `repository.url` and `keeper.listen`, where not given, get their
    places in the state and run folders. Raises Misconfigured: CONFIG_MISSING,
    CONFIG_UNREADABLE, CONFIG_TOO_LARGE, CONFIG_NOT_UTF8, CONFIG_SYNTAX, or, with all its
    `problems`, CONFIG_INVALID (InvalidConfiguration).
    """
    file = Path(path).absolute()
    table = _table(_text(_bytes(file), file), file)
    problems = tuple(islice(shape.faults(Configuration, table), MOST_PROBLEMS))
    if problems:
        raise InvalidConfiguration(file, problems)
    configuration = msgspec.convert(table, Configuration)
    problems = tuple(islice(rules.problems(configuration), MOST_PROBLEMS))
    if problems:
        raise InvalidConfiguration(file, problems)
    return _definite(configuration, file.parent, listens="listen" in table.get("keeper", {}))


def _bytes(file: Path) -> bytes:
    try:
        content, _ = files.read(file, LIMIT)
    except FileNotFoundError:
        raise Misconfigured(
            "CONFIG_MISSING",
            f"There is no configuration at {file}.",
            next_step="Give its path with --config.",
        ) from None
    except OSError as error:
        raise Misconfigured(
            "CONFIG_UNREADABLE", f"{file} cannot be read ({error.strerror})."
        ) from None
    if len(content) > LIMIT:
        raise Misconfigured("CONFIG_TOO_LARGE", f"{file} is larger than {LIMIT} bytes.")
    return content


def _text(content: bytes, file: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Misconfigured(
            "CONFIG_NOT_UTF8", f"{file} is not UTF-8 text (line {line}).", line=str(line)
        ) from None


def _table(text: str, file: Path) -> dict[str, Any]:
    # tomllib lets ValueError (a number of 5 000 digits) and RecursionError through.
    try:
        return tomllib.loads(text)
    except RecursionError:
        why = "nested too deeply"
    except ValueError as error:
        why = str(error)
    where = re.search(r"at line (\d+), column (\d+)", why)
    place = {"line": where[1], "column": where[2]} if where else {}
    raise Misconfigured("CONFIG_SYNTAX", f"{file} is not TOML: {why}.", **place)


def _definite(configuration: Configuration, folder: Path, *, listens: bool) -> Configuration:
    """With absolute paths (relative ones are relative to `folder`) and defaults filled in."""
    state = _absolute(configuration.state, folder)
    run = _absolute(configuration.run, folder)
    keeper, hsm = configuration.keeper, configuration.hsm
    repository, signer = configuration.repository, configuration.signer
    socket = keeper.listen.removeprefix("unix:") if listens else f"{run}/keeper.sock"
    return msgspec.structs.replace(
        configuration,
        state=state,
        run=run,
        keyring=_absolute(configuration.keyring or f"{state}/keyring", folder),
        hsm=msgspec.structs.replace(
            _with_paths(hsm, folder, "pin"), module=_module(hsm.module, folder)
        ),
        store=msgspec.structs.replace(
            _with_paths(configuration.store, folder, "password"),
            url=_store_url(configuration.store.url, state, folder),
        ),
        keeper=msgspec.structs.replace(keeper, listen=f"unix:{_absolute(socket, folder)}"),
        repository=msgspec.structs.replace(
            _with_paths(repository, folder, "certificate", "key", "tls_ca"),
            url=repository.url or Path(state, "repository").as_uri(),
        ),
        signer=msgspec.structs.replace(signer, tls=_tls(signer.tls, folder)),
        client=msgspec.structs.replace(
            configuration.client, tls=_tls(configuration.client.tls, folder)
        ),
        authorities={
            name: _with_paths(one, folder, "root", "password", "tls_ca", "token_file")
            for name, one in configuration.authorities.items()
        },
        issuers={
            name: _with_paths(one, folder, "eab_mac_key", "tls_ca", "staging_root")
            for name, one in configuration.issuers.items()
        },
    )


def _with_paths(settings: S, folder: Path, *names: str) -> S:
    paths = {name: _absolute(getattr(settings, name), folder) for name in names}
    return msgspec.structs.replace(settings, **paths)


def _tls(tls: Tls | None, folder: Path) -> Tls | None:
    return None if tls is None else _with_paths(tls, folder, "certificate", "key", "ca")


def _absolute(path: str, folder: Path) -> str:
    if not path or path.startswith(CREDENTIAL):
        return path
    return os.path.normpath(folder / path)


def _module(module: str, folder: Path) -> str:
    # A bare name is for the dynamic linker to find.
    return _absolute(module, folder) if "/" in module else module


def _store_url(url: str, state: str, folder: Path) -> str:
    match = re.fullmatch(r"(sqlite(?:\+pysqlite)?:///)([^/?][^?]*)(\?.*)?", url)
    if match:
        return f"{match[1]}{_absolute(match[2], folder)}{match[3] or ''}"
    return url or f"sqlite:///{state}/kmsd.db"
