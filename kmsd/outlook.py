"""What people ask about the present and the future: why a credential is where it is (`explain`),
and the calendar of what will happen (`forecast`), from what is stored. Reads, and changes nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable

from kmsd.enrollment import ON_THE_WAY
from kmsd.errors import Invalid
from kmsd.explain import Explanation, Who, explain
from kmsd.forecast import Planned, forecast
from kmsd.model import Active, Credential
from kmsd.preconditions import unknown_profile
from kmsd.renewal import renewal_moment
from kmsd.rotation import Hints
from kmsd.settings import Configuration, Policy
from kmsd.store import Store

LONGEST = 3660
"""Days that a calendar may have: the longest certificates live three years."""
MOST = 10_000
"""Entries of one calendar, at most."""


class Outlook:
    """Of one store."""

    def __init__(
        self, configuration: Configuration, store: Store, clock: Callable[[], int]
    ) -> None:
        self._profiles = configuration.profiles
        self._store = store
        self._clock = clock

    async def explain(self, about: str) -> tuple[str, tuple[Explanation, ...]]:
        """The profile that `about` is the name of, or that the credential with this (beginning of
        an) id belongs to, and the explanations: of the credential, or of what the profile signs
        with and of what is coming, if there is neither of its newest one.

        Raises as Store.find does.
        """
        return await asyncio.to_thread(self._explain, about)

    async def plan(self, days: int, profile: str = "") -> tuple[int, list[Planned], bool]:
        """The calendar of the next days: now, its entries, and whether they are all there are.

        profile: only that one's; empty: of all. Raises Invalid (DAYS_INVALID), NotFound
        (PROFILE_UNKNOWN).
        """
        if not 0 < days <= LONGEST:
            raise Invalid("DAYS_INVALID", f"A calendar has 1 to {LONGEST} days, not {days}.")
        if profile and profile not in self._profiles:
            raise unknown_profile(profile)
        return await asyncio.to_thread(self._plan, days, profile)

    def _explain(self, about: str) -> tuple[str, tuple[Explanation, ...]]:
        if about in self._profiles:
            name, wanted = about, None
        else:
            wanted = self._store.find(about)
            name = wanted.profile
        mine = self._store.credentials(name)
        settings = self._profiles.get(name)
        policy = settings.policy if settings else Policy()
        hints = self._hints(mine)
        healths = self._store.agenda.healths(name)
        now = self._clock()
        chosen = [wanted] if wanted else _of_interest(mine)
        explained = (explain(one, mine, policy, hints, now, healths) for one in chosen)
        return name, tuple(explained) or (_never_enrolled(name),)

    def _plan(self, days: int, profile: str) -> tuple[int, list[Planned], bool]:
        now = self._clock()
        credentials = self._store.credentials(profile or None)
        hints = self._hints(credentials)
        of: defaultdict[str, list[Credential]] = defaultdict(list)
        for one in credentials:
            of[one.profile].append(one)
        profiles = {
            name: (of[name], settings.policy, hints)
            for name, settings in self._profiles.items()
            if profile in ("", name)
        }
        planned = forecast(now, days, profiles, MOST + 1)
        return now, planned[:MOST], len(planned) <= MOST

    def _hints(self, credentials: Iterable[Credential]) -> Hints:
        active = [one.id for one in credentials if isinstance(one.state, Active)]
        if not active:
            return Hints()
        suggestions = self._store.agenda.suggestions(active if len(active) == 1 else ())
        distrusted = self._store.agenda.distrusted(*(active if len(active) == 1 else ()))
        return Hints(
            renew_at={
                one.credential: renewal_moment(one.window, one.credential.encode())
                for one in suggestions
                if one.window is not None
            },
            condemned={one.credential: one.reason for one in distrusted},
        )


def _of_interest(mine: tuple[Credential, ...]) -> list[Credential]:
    """Of one profile, newest first: what it signs with and what is coming, else the newest."""
    chosen = [one for one in mine if isinstance(one.state, Active)]
    chosen += [one for one in mine if isinstance(one.state, ON_THE_WAY)]
    return chosen or list(mine[:1])


def _never_enrolled(profile: str) -> Explanation:
    return Explanation(
        credential="",
        state="none",
        why="The profile has no credential: it was never enrolled.",
        needs="A person asks for its first one.",
        who=Who.OPERATOR,
        command=f"kmsctl enroll {profile}",
    )
