"""Who may have what signed: grants from the configuration, looked up by caller identity.

Pure rules; default deny. The signer asks once for a call or a stream (`Grants.of`) and then for
each profile, PASSporT type and attestation. Identities come from a verified client certificate,
and those of one kind cannot be spelled by another: a DNS name is never taken for a URI.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from kmsd.errors import Denied
from kmsd.model import Value
from kmsd.settings import Caller

EVERY_PROFILE: Final = "*"
LEVELS: Final = {"A": 3, "B": 2, "C": 1}
MOST_KNOWN: Final = 1024
"""Peers whose grants are kept: each granted caller, and what else its certificates name."""
UNIX: Final = "unix"
"""Whoever reaches a unix socket."""
PLAINTEXT: Final = "plaintext"
"""Whoever reaches a listener without TLS."""


class Grant(Value, frozen=True):
    """What one caller may have signed for one profile.

    levels: for each PASSporT type the highest attestation, as in LEVELS.
    """

    levels: dict[str, int]

    def check(self, ppt: str, attest: str) -> None:
        """Raises Denied when this type (`base` for none) or attestation ("" for none) is not in it.

        Attestation is the provider's decision (FCC 24-120): a grant says the highest.
        """
        level = self.levels.get(ppt)
        if level is None:
            raise Denied(
                "TYPE_NOT_GRANTED",
                f"This caller was not granted PASSporTs of type {ppt}.",
                next_step="An operator can add it to the caller's `types` in kmsd.toml.",
                type=ppt,
            )
        if attest and LEVELS[attest] > level:
            raise Denied(
                "ATTEST_NOT_GRANTED",
                f"This caller was not granted attestation {attest}.",
                next_step="An operator can raise the caller's `attest` in kmsd.toml.",
                attest=attest,
            )


class PeerGrants:
    """All that one connection's identities were granted.

    Entries that name the same profile add up; those with `*` count for profiles no entry names.
    """

    def __init__(self, identities: Sequence[str], callers: Sequence[Caller]) -> None:
        self._identities = identities
        self._grants: dict[str, Grant] = {}
        for caller in callers:
            grant = Grant(dict.fromkeys(caller.types, LEVELS[caller.attest]))
            for profile in caller.profiles:
                self._grants[profile] = _union(self._grants.get(profile), grant)

    @property
    def kind(self) -> str:
        """How the caller came: `unix`, `plaintext`, or `tls` with a client certificate."""
        name = next(iter(self._identities), "")
        return name if name in _RESERVED else "tls"

    def for_profile(self, profile: str) -> Grant:
        """The grant for `profile`. Raises Denied, in the same words whether it exists or not."""
        grant = self._grants.get(profile) or self._grants.get(EVERY_PROFILE)
        if grant is None:
            names = ", ".join(self._identities)[:200] or "no identity"
            raise Denied(
                "PROFILE_NOT_GRANTED",
                f"This caller ({names}) was not granted profile {profile[:64]!r}.",
                next_step="An operator can add a [[callers]] entry to kmsd.toml.",
                profile=profile[:64],
            )
        return grant

    def may_see(self, profile: str) -> bool:
        """Whether the caller may learn what `profile` signs with."""
        return profile in self._grants or EVERY_PROFILE in self._grants


class Grants:
    """The [[callers]] of the configuration."""

    def __init__(self, callers: Iterable[Caller]) -> None:
        self._callers: defaultdict[str, list[Caller]] = defaultdict(list)
        for caller in callers:
            self._callers[caller.id].append(caller)
        self._known: dict[tuple[str, ...], PeerGrants] = {}

    def of(self, identities: Sequence[str]) -> PeerGrants:
        """What a peer with these identities (URI, DNS name, `CN=...`) was granted."""
        # Every unary call asks, and a caller may have ten thousand profiles.
        names = tuple(identities)
        peer = self._known.get(names)
        if peer is None:
            mine = [caller for name in names for caller in self._callers.get(name, ())]
            peer = PeerGrants(names, mine)
            if mine and len(self._known) < MOST_KNOWN:  # strangers are not kept
                self._known[names] = peer
        return peer


def certificate_identities(
    *, uris: Iterable[bytes], dns_names: Iterable[bytes], common_names: Iterable[bytes]
) -> list[str]:
    """The identities of a verified client certificate, as the configuration names them.

    uris, dns_names: of its subjectAltName, as X.509 has them. Those that are not of their kind's
    form, or not UTF-8, are no identity: a CA may check less than it signs.
    """
    return [
        *(name for name in _texts(uris) if _URI.fullmatch(name)),
        *(name for name in _texts(dns_names) if _DNS.fullmatch(name) and name not in _RESERVED),
        *(f"CN={name}" for name in _texts(common_names)),
    ]


_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_DNS: Final = re.compile(r"[A-Za-z0-9_*-]+(\.[A-Za-z0-9_-]+)*\.?")
_RESERVED: Final = (UNIX, PLAINTEXT)


def _texts(names: Iterable[bytes]) -> Iterable[str]:
    for name in names:
        try:
            yield name.decode()
        except UnicodeDecodeError:
            continue


def _union(one: Grant | None, other: Grant) -> Grant:
    if one is None:
        return other
    higher = {
        ppt: max(level, one.levels.get(ppt, 0)) for ppt, level in other.levels.items()
    }  # type by type: an A for div is none for shaken
    return Grant(one.levels | higher)
