"""How single values in kmsd.toml are written. Pure.

Each check yields one line, `path: what is wrong`, or nothing.
"""

import ipaddress
import re
import string
from collections.abc import Iterator, Mapping
from urllib.parse import SplitResult, urlsplit

from kmsd.config.shape import similar


def known(name: str, table: Mapping[str, object], path: str) -> Iterator[str]:
    """The name is a key of the table."""
    if name not in table:
        yield f"{path}: there is no {name[:64]!r} here{similar(name, list(table))}"


def within(value: float, low: float, high: float, path: str, unit: str = "") -> Iterator[str]:
    """The number is in the range."""
    # Written so that nan is out of range too.
    if not low <= value <= high:
        yield f"{path}: must be from {low} to {high} {unit}".rstrip()


def country(text: str, path: str) -> Iterator[str]:
    """A country code, or nothing."""
    if not re.fullmatch(r"([A-Z]{2})?", text):
        yield f"{path}: is two upper-case letters (ISO 3166)"


def reference(text: str, path: str, *, needed: bool = False) -> Iterator[str]:
    """Where a secret is: a path that cannot be mistaken for the secret, or a credential."""
    if not text:
        if needed:
            yield f"{path}: is missing; write the path of a file, or credential:NAME"
    elif "/" not in text and not text.startswith("credential:"):
        # Not shown, and not taken for a file: it may be the secret itself.
        yield f"{path}: write a path with a slash (./NAME is beside this file) or credential:NAME"


def placeholders(text: str, known: set[str], path: str) -> Iterator[str]:
    """Only known fields stand in braces."""
    try:
        used = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError:
        used = {""}
    if used - known:
        yield f"{path}: what may stand in braces is {', '.join(sorted(known))}"


def https(url: str, path: str, *, query: bool = False) -> Iterator[str]:
    """An https URL with nothing in it that a redirect or a log could abuse."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and parts.hostname and port(parts) > 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[!-~]{1,2048}", url):
        yield f"{path}: is no https URL"
    elif "@" in parts.netloc or parts.fragment or (parts.query and not query):
        yield f"{path}: has a user, a query or a fragment, and may not"


def port(parts: SplitResult) -> int:
    """The port of an https URL."""
    return 443 if parts.port is None else parts.port


def address(text: str, path: str) -> Iterator[str]:
    """host:port, as a listener or a target."""
    host, _, number = text.rpartition(":")
    if host.startswith("["):
        host = host.removeprefix("[").removesuffix("]")
    elif ":" in host:
        host = ""
    is_port = re.fullmatch(r"[0-9]{1,5}", number) and int(number) <= 65_535
    if not re.fullmatch(r"[A-Za-z0-9._:%-]{1,253}", host) or not is_port:
        yield f"{path}: write host:port, or [address]:port for IPv6"


def is_loopback(address: str) -> bool:
    """Whether an address that `address` accepts stays on this host."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
