"""Rollback: a profile goes back to the credential it signed with before, while that is possible.

It takes the last steps of every credential again: its chain is fetched back from its x5u, a canary
is signed and verified, then every signer switches. Only then is the present one retired; its key
stays for the holding time, so that there is a way back from here too. Nothing is asked of an
STI-CA, and nobody else needs to be up.
"""

import asyncio
from collections.abc import Callable, Iterable

from kmsd.enrollment import ON_THE_WAY, Recalled, may_be_recalled
from kmsd.errors import Precondition
from kmsd.hsm import Hsm
from kmsd.hsmthread import HsmThread
from kmsd.keeper import Keeper
from kmsd.model import Active, Credential, Retired
from kmsd.movers import Movers
from kmsd.preconditions import unknown_profile
from kmsd.settings import Configuration
from kmsd.store import Store


class Rollback:
    """Of one store and one HSM."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        keeper: Keeper,
        movers: Movers,
        hsm: HsmThread,
        clock: Callable[[], int],
    ) -> None:
        self._profiles = configuration.profiles
        self._store = store
        self._keeper = keeper
        self._movers = movers
        self._hsm = hsm
        self._clock = clock

    async def begin(self, profile: str) -> Credential:
        """Recalls the profile's previous credential and sets it moving; asked again, gives the one
        that is on its way back.

        Raises NotFound (PROFILE_UNKNOWN), Precondition (PROFILE_BUSY: another one is on its way;
        ROLLBACK_IMPOSSIBLE: none can be gone back to), and what the HSM raises.
        """
        self._store.require_acting()
        if profile not in self._profiles:
            raise unknown_profile(profile)
        async with self._keeper.turn(profile):
            credentials = await asyncio.to_thread(self._store.credentials, profile)
            for one in credentials:
                if isinstance(one.state, ON_THE_WAY) and not one.rehearsal:
                    if getattr(one.state, "recalled", False):
                        self._movers.insist(one.id)
                        return one
                    raise _busy(profile, one)
            previous = _previous(profile, credentials, self._clock())
            await self._check_key(previous)
            recalled = await self._keeper.apply(previous, Recalled(), "rollback")
        self._movers.move(recalled.id)
        return recalled

    async def _check_key(self, credential: Credential) -> None:
        """Whether its key is in the HSM, before anything is changed."""
        assert isinstance(credential.state, Retired)  # noqa: S101  _previous chose it
        there = await self._hsm(Hsm.public_key, credential.key_id)
        if there != credential.state.birth.public_key:
            raise _impossible(
                credential.profile, f"The key of {credential.id} is not in the HSM any more."
            )


def _previous(profile: str, credentials: Iterable[Credential], now: int) -> Credential:
    """The one retired last that can sign still. Raises Precondition (ROLLBACK_IMPOSSIBLE)."""
    retired = [one for one in credentials if isinstance(one.state, Retired)]
    retired.sort(key=_since, reverse=True)
    for one in retired:
        if may_be_recalled(one, now):
            return one
    if not retired:
        raise _impossible(profile, "It has no former credential whose key is kept.")
    raise _impossible(profile, f"{retired[0].id} was the last one, and {_why_not(retired[0], now)}")


def _why_not(credential: Credential, now: int) -> str:
    assert isinstance(credential.state, Retired)  # noqa: S101  the caller's promise
    if credential.revocation is not None or credential.condemned is not None:
        return "it is revoked, or to be."
    if credential.state.certificate.not_after <= now:
        return "its certificate has expired."
    return "its key is about to be destroyed."


def _since(credential: Credential) -> int:
    return credential.state.since if isinstance(credential.state, Active | Retired) else 0


def _busy(profile: str, coming: Credential) -> Precondition:
    return Precondition(
        "PROFILE_BUSY",
        f"Credential {coming.id} of profile {profile} is on its way to be active.",
        next_step=f"Give it up first: kmsctl destroy {coming.id}",
        profile=profile,
        credential=coming.id,
    )


def _impossible(profile: str, why: str) -> Precondition:
    return Precondition(
        "ROLLBACK_IMPOSSIBLE",
        f"Profile {profile} cannot go back. {why}",
        next_step=f"For a new key and certificate: kmsctl rotate {profile}",
        profile=profile,
    )
