"""Revocation: what is asked of an STI-CA about a certificate, and a compromised key's way out.

A key that somebody else may have is condemned first, which is stored: then its profile gets a new
credential, the STI-CA is asked to revoke the certificate, and the key is destroyed, in this order
and across restarts. Every other reason is one request to the STI-CA. RFC 8555 section 7.6;
verifiers learn of a revocation by the STI-PA's CRL alone (ATIS-1000080 section 6.3.9).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress

import structlog
from msgspec.structs import replace

from kmsd import certs
from kmsd.counterparts import Counterparts
from kmsd.enrollment import Deferred, advance, birth_of, certificate_of
from kmsd.errors import Invalid, KmsdError, PeerRefused, Precondition, Unavailable
from kmsd.keeper import Keeper
from kmsd.model import (
    KEY_COMPROMISE,
    Active,
    Certificate,
    Condemned,
    Credential,
    Destroyed,
    Failed,
    Revocation,
)
from kmsd.movers import Movers, News
from kmsd.preconditions import wrong_state
from kmsd.store import Event, Store

REASONS = frozenset({0, 1, 3, 4, 5})
"""RFC 5280 section 5.3.1 codes that a subscriber may give."""
LOOK_EVERY = 1.0
"""Seconds between two looks at whether a condemned credential can be revoked now."""
DESTROYED_WITHIN = 30.0
"""Seconds that whoever watches waits for the HSM to destroy the key."""

log = structlog.get_logger()


class Revoking:
    """Of one store; the only one that asks STI-CAs to revoke."""

    def __init__(
        self,
        store: Store,
        keeper: Keeper,
        movers: Movers,
        counterparts: Counterparts,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._movers = movers
        self._counterparts = counterparts
        self._clock = clock
        self._condemned: set[str] = set()
        self._failures: dict[str, tuple[Credential, KmsdError]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def failures(self) -> Iterable[tuple[Credential, KmsdError]]:
        """Condemned credentials that the STI-CA could not be got to revoke yet, and why."""
        return tuple(self._failures.values())

    async def run(self) -> None:
        """Carries out what was asked for, until it is cancelled; also what was before a restart."""
        known = False
        while True:
            try:
                if not known:
                    credentials = await asyncio.to_thread(self._store.credentials)
                    self._condemned |= {one.id for one in credentials if one.condemned}
                    known = True
                for identifier in tuple(self._condemned):
                    await self._settle(identifier)
            except KmsdError as error:  # the store: nothing was changed
                log.error("revoking", reason=error.reason, message=error.message)
            await asyncio.sleep(LOOK_EVERY)

    async def revoke(
        self, credential: Credential, wanted: Condemned, *, even_if_active: bool = False
    ) -> AsyncIterator[News]:
        """Revokes the credential's certificate; gives each step, the revoked credential last.

        For keyCompromise (1) the steps are stored and go on when nobody listens any more. Then
        the last one may be the failure of the new credential; what was asked for stays in force.
        Raises Invalid (REVOCATION_REASON_INVALID), Precondition (CREDENTIAL_STATE,
        CREDENTIAL_ACTIVE: the profile signs with it, and `even_if_active` is not set), what the
        STI-CA and the store raise, and as Keeper.begin and Keeper.revoked do.
        """
        self._store.require_acting()
        _check(credential, wanted, even_if_active)
        if credential.revocation is not None:
            revoked = self._keeper.revoked(credential, credential.revocation)
            yield News(self._clock(), await asyncio.shield(revoked))
        elif wanted.reason != KEY_COMPROMISE:
            # To its end even when the caller leaves: what the STI-CA took must be stored.
            yield News(self._clock(), await asyncio.shield(self._revoke(credential, wanted)))
        else:
            async for news in self._compromised(credential, wanted):
                yield news

    async def pardon(self, credential: Credential) -> Credential:
        """Takes a condemnation back. Raises Precondition when the STI-CA has been asked."""
        async with self._turns[credential.id]:
            credential = await asyncio.to_thread(self._store.credential, credential.id)
            if credential.condemned is None or credential.revocation is not None:
                raise wrong_state(credential, "restored", "Its certificate is revoked for good.")
            pardoned = replace(credential, condemned=None, trouble=None)
            saved = await self._save(pardoned, "pardon", credential.condemned)
        self._condemned.discard(credential.id)
        self._failures.pop(credential.id, None)
        return saved

    async def _compromised(self, credential: Credential, wanted: Condemned) -> AsyncIterator[News]:
        """Condemned; then a new credential, revocation and destruction, or with at_once the new
        one last."""
        signs = isinstance(credential.state, Active)
        credential = await self._condemn(credential, wanted)
        yield News(self._clock(), credential)
        coming = await self._keeper.begin(credential.profile, rotate=True) if signs else None
        if coming and not wanted.at_once:
            async for news in self._movers.news(coming.id):
                yield news
            if isinstance(news.credential.state, Failed):
                return
        settled = await asyncio.shield(asyncio.create_task(self._settle(credential.id, told=True)))
        yield News(self._clock(), settled)
        if coming and wanted.at_once:
            async for news in self._movers.news(coming.id):
                yield news
        yield News(self._clock(), await self._destroyed(settled))

    async def _condemn(self, credential: Credential, wanted: Condemned) -> Credential:
        async with self._turns[credential.id]:
            credential = await asyncio.to_thread(self._store.credential, credential.id)
            if credential.condemned != wanted:
                changed = replace(credential, condemned=wanted)
                credential = await self._save(changed, "condemn", wanted)
        self._condemned.add(credential.id)
        return credential

    async def _settle(self, identifier: str, *, told: bool = False) -> Credential:
        """Revokes what is condemned, if it is time; what goes wrong is the credential's trouble.

        told: it is time although the last attempt failed just now, and errors are raised.
        """
        async with self._turns[identifier]:
            credential = await asyncio.to_thread(self._store.credential, identifier)
            condemned, trouble = credential.condemned, credential.trouble
            if condemned is None or isinstance(credential.state, Destroyed):
                self._condemned.discard(identifier)
                return credential
            signs = isinstance(credential.state, Active) and not condemned.at_once
            if signs or (trouble and trouble.retry_at > self._clock() and not told):
                return credential
            try:
                revoked = await self._revoke(credential, condemned)
            except (PeerRefused, Unavailable, Precondition) as error:
                self._failures[identifier] = (credential, error)
                await self._defer(identifier, error)
                if told:
                    raise
                return credential
            self._failures.pop(identifier, None)
            self._movers.move(identifier)  # to the destruction of its key
        self._condemned.discard(identifier)
        return revoked

    async def _revoke(self, credential: Credential, wanted: Condemned) -> Credential:
        """Asks the STI-CA, and stores that it did so."""
        if credential.revocation is None:
            certificate = certificate_of(credential.state)
            assert certificate is not None  # noqa: S101  _check saw it; it does not get lost
            await self._ask(credential, certificate, wanted)
            revocation = Revocation(self._clock(), wanted.reason)
        else:
            revocation = credential.revocation
        return await self._keeper.revoked(credential, revocation)

    async def _ask(
        self, credential: Credential, certificate: Certificate, wanted: Condemned
    ) -> None:
        leaf = certs.leaf_der(certificate.chain)
        name = certificate.issuer
        if not wanted.by_certificate_key:
            async with self._counterparts.issuer(credential.profile, name) as (acme, _):
                await acme.revoke(leaf, wanted.reason)
            return
        birth = birth_of(credential.state)
        if birth is None or isinstance(credential.state, Destroyed):
            raise wrong_state(credential, "revoked by its own key", "The key is gone.")
        key = self._counterparts.key(birth)
        async with self._counterparts.client(name, key) as acme:
            await acme.revoke(leaf, wanted.reason, key)

    async def _defer(self, identifier: str, error: KmsdError) -> None:
        credential = await asyncio.to_thread(self._store.credential, identifier)
        deferred = Deferred(
            error.reason,
            f"Its certificate is not revoked yet. {error.message}",
            error.next_step,
            retry_after=int(error.retry_after) if isinstance(error, Unavailable) else 0,
            problem=error.problem if isinstance(error, PeerRefused) else "",
        )
        log.warning("revoke", credential=identifier, outcome=error.reason)
        with suppress(Precondition):  # it changed meanwhile: it is looked at again
            await asyncio.to_thread(self._store.save, advance(credential, deferred, self._clock()))

    async def _destroyed(self, credential: Credential) -> Credential:
        """It once its key is destroyed, or as it is when that takes long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DESTROYED_WITHIN):
                while not isinstance(credential.state, Destroyed):
                    await asyncio.sleep(0.1)
                    credential = await asyncio.to_thread(self._store.credential, credential.id)
        return credential

    async def _save(self, credential: Credential, what: str, wanted: Condemned) -> Credential:
        event = Event(
            self._clock(),
            what,
            profile=credential.profile,
            credential=credential.id,
            detail={"reason": str(wanted.reason)},
        )
        return await asyncio.to_thread(self._store.save, credential, event)


def _check(credential: Credential, wanted: Condemned, even_if_active: bool) -> None:
    if wanted.reason not in REASONS:
        raise Invalid(
            "REVOCATION_REASON_INVALID",
            f"{wanted.reason} is not a reason a subscriber can give.",
            next_step="0 unspecified, 1 keyCompromise, 3 affiliationChanged, 4 superseded "
            "or 5 cessationOfOperation (RFC 5280 section 5.3.1).",
        )
    if certificate_of(credential.state) is None:
        raise wrong_state(credential, "revoked", "It has no certificate.")
    if wanted.by_certificate_key and isinstance(credential.state, Destroyed):
        raise wrong_state(credential, "revoked by its own key", "The key is gone.")
    replaced_first = wanted.reason == KEY_COMPROMISE
    if isinstance(credential.state, Active) and not (even_if_active or replaced_first):
        raise Precondition(
            "CREDENTIAL_ACTIVE",
            f"Profile {credential.profile} signs with this credential.",
            next_step=f"First `kmsctl rotate {credential.profile}`, or add --now: "
            "signing for the profile then stops.",
            credential=credential.id,
        )
