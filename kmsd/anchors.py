"""Trust material of each STI-PA's domain: trusted STI-CA list and CRL, last good in the store.

A refresh that fails leaves what was there and says why (`trouble`). Who may be believed is
decided by `trust` and `crl`; here it is only fetched, kept and handed out.
"""

import asyncio
from collections.abc import Callable

import structlog
from cryptography import x509

from kmsd.counterparts import Counterparts
from kmsd.errors import KmsdError, Unavailable
from kmsd.model import RevocationList, TrustList, Value
from kmsd.store import Store

LIST_EVERY = 6 * 3600
CRL_EVERY = 3600
RETRY_EVERY = 300

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
        self._turn = asyncio.Lock()
        self.trouble: dict[str, KmsdError] = {}

    async def material(self, authority: str) -> Material:
        """The last good material, refreshed when it is due.

        Raises Unavailable (TRUST_LIST_MISSING or TRUST_LIST_EXPIRED) when there is no list that
        can be gone by.
        """
        await self.refresh(authority)
        trust_list = await asyncio.to_thread(self._store.trust_list, authority)
        crl = await asyncio.to_thread(self._store.revocation_list, authority)
        why = self.trouble.get(authority)
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

    async def crl_location(self, authority: str) -> tuple[str, str]:
        """URL and issuer (RFC 4514 text) of the CRL, for a CSR's CRL distribution point."""
        crl = (await self.material(authority)).crl
        if crl is None:
            raise Unavailable(
                "CRL_MISSING",
                f"There is no CRL of {authority} yet, and this STI-CA wants its issuer in the CSR.",
                next_step="The keeper tries again by itself; `kmsd check` tests the STI-PA now.",
            )
        issuer = x509.load_der_x509_crl(crl.der).issuer.rfc4514_string()
        return self._counterparts.authority(authority).crl_url, issuer

    async def refresh(self, authority: str) -> None:
        """Fetches what is due. Never raises: what went wrong is in `trouble`."""
        async with self._turn:
            try:
                await self._refresh(authority)
                self.trouble.pop(authority, None)
            except KmsdError as error:
                if authority not in self.trouble:
                    log.warning("trust_refresh", authority=authority, reason=error.reason)
                self.trouble[authority] = error

    async def _refresh(self, authority: str) -> None:
        now = self._clock()
        last_list = await asyncio.to_thread(self._store.trust_list, authority)
        last_crl = await asyncio.to_thread(self._store.revocation_list, authority)
        if last_list is None or _due(now, last_list.fetched_at, LIST_EVERY, last_list.expires):
            fresh = await self._counterparts.authority(authority).trust_list(last_list, now)
            await asyncio.to_thread(self._store.save_trust_list, fresh)
            log.info("trust_list", authority=authority, sequence=fresh.sequence)
        if last_crl is None or _due(now, last_crl.fetched_at, CRL_EVERY, last_crl.next_update):
            revoked = await self._counterparts.authority(authority).crl(last_crl, now)
            await asyncio.to_thread(self._store.save_revocation_list, revoked)
            log.info("crl", authority=authority, number=revoked.number)


def _due(now: int, fetched_at: int, every: int, ends: int) -> bool:
    return now >= fetched_at + every or now >= ends - RETRY_EVERY
