"""Who may have what signed: grants from the configuration, looked up by caller identity.

Pure rules; default deny. The signer asks once for a connection (`Grants.of`) and then for each
profile, PASSporT type and attestation. Identities come from a verified client certificate.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from kmsd.errors import Denied
from kmsd.model import Value
from kmsd.settings import Caller

EVERY_PROFILE: Final = "*"
LEVELS: Final = {"A": 3, "B": 2, "C": 1}


class Grant(Value, frozen=True):
    """What one caller may have signed for one profile. level: highest attestation, LEVELS."""

    types: frozenset[str]
    level: int

    def check(self, ppt: str, attest: str) -> None:
        """Raises Denied when this type (`base` for none) or attestation ("" for none) is not in it.

        Attestation is the provider's decision (FCC 24-120): a grant says the highest.
        """
        if ppt not in self.types:
            raise Denied(
                "TYPE_NOT_GRANTED",
                f"This caller was not granted PASSporTs of type {ppt}.",
                next_step="An operator can add it to the caller's `types` in kmsd.toml.",
                type=ppt,
            )
        if attest and LEVELS[attest] > self.level:
            raise Denied(
                "ATTEST_NOT_GRANTED",
                f"This caller was not granted attestation {attest}.",
                next_step="An operator can raise the caller's `attest` in kmsd.toml.",
                attest=attest,
            )


class PeerGrants:
    """All that one connection's identities were granted."""

    def __init__(self, identities: Sequence[str], callers: Sequence[Caller]) -> None:
        self._identities = identities
        self._grants: dict[str, Grant] = {}
        for caller in callers:
            grant = Grant(frozenset(caller.types), LEVELS[caller.attest])
            for profile in caller.profiles:
                self._grants[profile] = _union(self._grants.get(profile), grant)

    def for_profile(self, profile: str) -> Grant:
        """The grant for `profile`. Raises Denied, in the same words whether it exists or not."""
        grant = self._grants.get(profile) or self._grants.get(EVERY_PROFILE)
        if grant is None:
            names = ", ".join(self._identities) or "no identity"
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
        self._callers = tuple(callers)

    def of(self, identities: Sequence[str]) -> PeerGrants:
        """What a peer with these identities (URI, DNS name, `CN=...`) was granted."""
        mine = [caller for caller in self._callers if caller.id in identities]
        return PeerGrants(identities, mine)


def _union(one: Grant | None, other: Grant) -> Grant:
    if one is None:
        return other
    return Grant(one.types | other.types, max(one.level, other.level))
