"""Trust material of each STI-PA's domain: trusted STI-CA list and CRL, last good in the store.

A refresh that fails leaves what was there and says why (`trouble`). Who may be believed is
decided by `trust` and `crl`; here it is only fetched, kept and handed out.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import structlog
from cryptography import x509

from kmsd.counterparts import Counterparts
from kmsd.errors import KmsdError, Unavailable
from kmsd.model import RevocationList, TrustList, Value
from kmsd.store import Event, Store

LIST_EVERY = 6 * 3600
CRL_EVERY = 3600
RETRY_EVERY = 300
RETRY_SOON = 10
"""Seconds before a dead STI-PA is asked again, when the last list or CRL has ended."""

log = structlog.get_logger()


class Material(Value, frozen=True):
    """What certificates of a domain are judged by. crl is None when the STI-PA has none yet."""

    trust_list: TrustList
    crl: RevocationList | None


class Anchors:
    """The trust material of all configured authorities."""

    def __init__(self, store: Store, counterparts: Counterparts, clock: Callable[[], int]) -> None:
        self._store = store
        self._counterparts = counterparts
        self._clock = clock
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._versions: defaultdict[str, int] = defaultdict(int)
        self._setbacks: dict[tuple[str, str], tuple[int, KmsdError]] = {}

    def trouble(self, authority: str) -> KmsdError | None:
        """Why the last refresh failed, if it did."""
        for what in ("list", "crl"):
            if (setback := self._setbacks.get((authority, what))) is not None:
                return setback[1]
        return None

    def version(self, authority: str) -> int:
        """Another number whenever the material is another one; counted from the start."""
        return self._versions[authority]

    async def material(self, authority: str) -> Material:
        """The last good material, refreshed when it is due.

        Raises Unavailable (TRUST_LIST_MISSING or TRUST_LIST_EXPIRED) when there is no list that
        can be gone by.
        """
        await self.refresh(authority)
        trust_list = await asyncio.to_thread(self._store.trust_list, authority)
        crl = await asyncio.to_thread(self._store.revocation_list, authority)
        why = self.trouble(authority)
        because = f" {why.message}" if why else ""
        if trust_list is None:
            raise Unavailable(
                "TRUST_LIST_MISSING",
                f"There is no list of trusted STI-CAs of {authority} yet.{because}",
                next_step="The keeper tries again by itself; `kmsd check` tests the STI-PA now.",
            )
        if trust_list.expires <= self._clock():
            raise Unavailable(
                "TRUST_LIST_EXPIRED",
                f"The list of trusted STI-CAs of {authority} has expired.{because}",
                next_step="The keeper tries again by itself; `kmsd check` tests the STI-PA now.",
            )
        return Material(trust_list, crl)

    async def crl_issuer(self, authority: str) -> str:
        """Who issues the CRL (RFC 4514 text), for a CSR's CRL distribution point."""
        crl = (await self.material(authority)).crl
        if crl is None:
            raise Unavailable(
                "CRL_MISSING",
                f"There is no CRL of {authority} yet, and this STI-CA wants its issuer in the CSR.",
                next_step="The keeper tries again by itself; `kmsd check` tests the STI-PA now.",
            )
        return x509.load_der_x509_crl(crl.der).issuer.rfc4514_string()

    async def refresh(self, authority: str) -> None:
        """Fetches what is due. Never raises: what went wrong is in `trouble`.

        Nothing while another keeper acts on the store: that one does.
        """
        if not self._store.acts:
            return
        async with self._turns[authority]:
            # The CRL also when the list is not to be had: each is the last good one for itself.
            for what, fetch in (("list", self._list), ("crl", self._crl)):
                now = self._clock()
                try:
                    await fetch(authority, now)
                except KmsdError as error:
                    if (authority, what) not in self._setbacks:
                        log.warning(
                            "trust_refresh", authority=authority, what=what, reason=error.reason
                        )
                    self._setbacks[authority, what] = (now, error)

    async def forget(self, authority: str) -> None:
        """Takes what the STI-PA serves now, signed to its pinned root, whatever its numbers are.

        A person answers for it. Nothing is changed unless all of it is good: raises what fetching
        and checking raise, and Unavailable (KEEPER_STANDS_BY).
        """
        self._store.require_acting()
        async with self._turns[authority]:
            now = self._clock()
            last = await asyncio.to_thread(self._store.trust_list, authority)
            last_crl = await asyncio.to_thread(self._store.revocation_list, authority)
            source = self._counterparts.authority(authority)
            fresh = await source.trust_list(None, now)
            crl = await source.crl(None, now) if last_crl else None
            detail = {
                "authority": authority,
                "sequence": f"{last.sequence if last else 'none'} -> {fresh.sequence}",
                "crl": f"{last_crl.number if last_crl else 'none'} -> {crl.number if crl else ''}",
            }
            event = Event(now, "trust_forget", detail=detail)
            await asyncio.to_thread(self._store.restart_trust, fresh, crl, event)
            self._versions[authority] += 1
            for what in ("list", "crl"):
                self._setbacks.pop((authority, what), None)
            log.warning("trust_forget", **detail)

    async def _list(self, authority: str, now: int) -> None:
        last = await asyncio.to_thread(self._store.trust_list, authority)
        if last and not self._due(
            authority, "list", now, last.fetched_at, LIST_EVERY, last.expires
        ):
            return
        fresh = await self._counterparts.authority(authority).trust_list(last, now)
        await asyncio.to_thread(self._store.save_trust_list, fresh)
        self._versions[authority] += last is None or last.roots != fresh.roots
        self._setbacks.pop((authority, "list"), None)
        log.info("trust_list", authority=authority, sequence=fresh.sequence)

    async def _crl(self, authority: str, now: int) -> None:
        last = await asyncio.to_thread(self._store.revocation_list, authority)
        if last and not self._due(
            authority, "crl", now, last.fetched_at, CRL_EVERY, last.next_update
        ):
            return
        fresh = await self._counterparts.authority(authority).crl(last, now)
        await asyncio.to_thread(self._store.save_revocation_list, fresh)
        self._versions[authority] += last is None or last.number != fresh.number
        self._setbacks.pop((authority, "crl"), None)
        log.info("crl", authority=authority, number=fresh.number)

    def _due(
        self, authority: str, what: str, now: int, fetched_at: int, every: int, ends: int
    ) -> bool:
        """Whether to ask now. After a failure not again at once, as long as the last one will do:
        whoever waits for the answer would wait for a dead STI-PA each time. Where the clock was
        set back, what it showed before says nothing."""
        if (authority, what) not in self._setbacks:
            return now < fetched_at or now >= min(fetched_at + every, ends - RETRY_EVERY)
        failed_at, _ = self._setbacks[authority, what]
        again = min(failed_at + RETRY_EVERY, max(ends, failed_at + RETRY_SOON))
        return now < failed_at or now >= again
