"""What others say of our credentials: STI-CAs suggest when to renew them (RFC 9773), and an STI-PA
may disown them, by its CRL or by taking an STI-CA off its list.

Asked for and stored here; what follows from it is the plan's (`rotation`). Nothing of it holds a
renewal up: no answer is an answer, and a plan is made without.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog
from msgspec.structs import replace

from kmsd import certs, renewal, standing
from kmsd.anchors import Anchors
from kmsd.candidates import Candidates
from kmsd.counterparts import Counterparts
from kmsd.enrollment import certificate_of
from kmsd.errors import KmsdError, Unavailable
from kmsd.model import Credential
from kmsd.renewal import Suggestion
from kmsd.rotation import Hints
from kmsd.settings import Configuration
from kmsd.store import Event, Known, Store

log = structlog.get_logger()


def hints(known: Known) -> Hints:
    """What is known from outside of a profile's credentials, as its plan wants it."""
    return Hints(
        renew_at={
            one.credential: renewal.renewal_moment(one.window, one.credential.encode())
            for one in known.suggestions.values()
            if one.window is not None
        },
        condemned={one.credential: one.reason for one in known.distrusted.values()},
    )


class Advice:
    """Of all profiles of one store."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        counterparts: Counterparts,
        candidates: Candidates,
        anchors: Anchors,
        clock: Callable[[], int],
    ) -> None:
        self._configuration = configuration
        self._store = store
        self._counterparts = counterparts
        self._candidates = candidates
        self._anchors = anchors
        self._clock = clock
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._judged: dict[str, int] = {}

    def ask(self, credential: Credential) -> None:
        """Asks the STI-CA of an active credential when to renew it; its answer makes the plan of
        the profile due. Does not wait, and asks once at a time."""
        if credential.id not in self._asking:
            task = asyncio.create_task(self._ask(credential))
            self._asking[credential.id] = task
            task.add_done_callback(lambda _: self._asking.pop(credential.id, None))

    async def judge(self) -> None:
        """Looks at every active credential again where the trust material is another one than the
        last time. Raises Invalid where that cannot be read, and as the store."""
        for authority in self._configuration.authorities:
            version = self._anchors.version(authority)
            if self._judged.get(authority) != version:
                self._judged[authority] = version
                try:
                    await asyncio.to_thread(self._judge, authority)
                except Unavailable:
                    del self._judged[authority]
                    raise

    async def close(self) -> None:
        """Asks no more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, credential: Credential) -> None:
        with suppress(KmsdError):  # of the store: it is asked again when the plan is made again
            last = await asyncio.to_thread(self._store.agenda.suggestion, credential.id)
            said = await self._asked(credential, last or Suggestion(credential.id, 0))
            if said is not None:
                await asyncio.to_thread(self._store.agenda.say, said)

    async def _asked(self, credential: Credential, last: Suggestion) -> Suggestion | None:
        certificate = certificate_of(credential.state)
        if certificate is None:
            return None
        issuer = certificate.issuer
        try:
            async with (
                self._candidates.slot(issuer),
                self._counterparts.issuer(credential.profile, issuer) as (acme, _),
            ):
                info = await acme.renewal_info(certs.leaf_der(certificate.chain))
        except KmsdError as error:
            failures = last.failures + 1
            ask_at = self._clock() + renewal.next_try(error, failures)
            log.info("renewal_info", credential=credential.id, issuer=issuer, reason=error.reason)
            return replace(last, ask_at=ask_at, failures=failures)
        if info is None:
            return Suggestion(credential.id, self._clock() + renewal.LATEST)
        ask_at = self._clock() + info.retry_after
        return Suggestion(credential.id, ask_at, info.window, info.explanation_url)

    def _judge(self, authority: str) -> None:
        trust_list = self._store.trust_list(authority)
        crl = self._store.revocation_list(authority)
        if trust_list is None:
            return
        profiles = self._configuration.profiles
        mine = [
            one
            for one in self._store.all_active()
            if one.profile in profiles and profiles[one.profile].authority == authority
        ]
        now = self._clock()
        found = standing.distrusted(mine, trust_list.roots, crl.der if crl else None, now)
        before = {one.credential: one.reason for one in self._store.agenda.distrusted()}
        for one in found:
            if before.pop(one.credential, "") == one.reason:
                continue
            log.warning("distrusted", credential=one.credential, reason=one.reason)
            self._store.agenda.say(one)
            self._store.record(
                Event(
                    now, "distrust", one.reason, one.profile, one.credential, {"why": one.message}
                )
            )
        for credential in before.keys() & {one.id for one in mine}:
            log.info("trusted_again", credential=credential)
            self._store.agenda.trust_again(credential)
