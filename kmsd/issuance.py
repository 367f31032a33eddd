"""From a key to an accepted chain: the steps of an enrollment that an STI-CA takes part in.

The order goes to the first STI-CA that takes one (`candidates`); everything after it to the one
that took it. RFC 8555 section 7.4, RFC 9448; the SPC token is there before the order is made.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Never

import structlog

from kmsd import certs, gate, issuers, jose, tnauthlist
from kmsd import enrollment as do
from kmsd.anchors import Anchors
from kmsd.candidates import Candidates, words
from kmsd.counterparts import Counterparts
from kmsd.enrollment import DAY, Outcome
from kmsd.errors import KmsdError, Misconfigured, PeerRefused
from kmsd.hsm import Hsm
from kmsd.hsmthread import HsmThread
from kmsd.issuers import Health, Later, all_refuse
from kmsd.model import Account, BirthRecord, Certificate, Credential
from kmsd.renewal import certificate_id
from kmsd.settings import Configuration, CsrCrldp, Profile, staged
from kmsd.spctoken import SpcToken
from kmsd.store import Store

log = structlog.get_logger()


class Issuance:
    """Everything these steps may need, and one method for each. All raise KmsdError."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        hsm: HsmThread,
        counterparts: Counterparts,
        candidates: Candidates,
        anchors: Anchors,
        clock: Callable[[], int],
    ) -> None:
        self._configuration = configuration
        self._store = store
        self._hsm = hsm
        self._counterparts = counterparts
        self._candidates = candidates
        self._anchors = anchors
        self._clock = clock
        # An SPC token is fetched and checked before the order and used right after it. It is not
        # stored: after a restart another one is fetched, bound to the same account.
        # With the CKA_ID of the account's key: a token dies with the key that it is bound to.
        self._tokens: dict[str, tuple[str, SpcToken]] = {}

    def profile(self, credential: Credential) -> Profile:
        """Its profile's settings. Raises Misconfigured (PROFILE_REMOVED)."""
        profile = self._configuration.profiles.get(credential.profile)
        if profile is None:
            raise Misconfigured(
                "PROFILE_REMOVED",
                f"Profile {credential.profile!r} is not in the configuration any more.",
                next_step="Put it back, or destroy its credentials.",
            )
        return profile

    async def rehearsal_roots(self, credential: Credential, issuer: str) -> tuple[str, ...]:
        """What is trusted besides the STI-PA's list, PEM: nothing but for a rehearsal."""
        return await self._counterparts.staging_roots(issuer) if credential.rehearsal else ()

    async def place_order(self, credential: Credential, *, insisted: bool) -> Outcome:
        """An order at the first STI-CA that takes one; those in back-off are not asked.

        insisted: a person wants it now, so they are.
        """
        profile, names = credential.profile, self.profile(credential).issuers
        if credential.rehearsal:  # a person waits for it, and its orders say nothing of others
            names, insisted = staged(self._configuration, names), True
        active = await asyncio.to_thread(self._store.active, profile)
        fresh: dict[tuple[str, str], Health] = {}
        met: KmsdError | None = None
        while True:
            known = tuple(fresh.values())
            if not insisted:
                known = await self._candidates.healths(profile)
            avoid = await self._candidates.avoid(profile)
            choice = issuers.choose(names, known, self._clock(), avoid)
            if isinstance(choice, Later):
                return _later(choice, known, met, self._clock())
            name = choice.issuer
            async with self._candidates.slot(name):
                if not insisted and choice != await self._candidates.choose(profile):
                    continue  # how it fares was seen by another while this one waited its turn
                try:
                    url = await self._order(credential, name, active)
                except KmsdError as error:
                    health = await self._candidates.fared(profile, name, error)
                    if health is None:
                        raise
                    log.warning("issuer_failed", issuer=name, reason=error.reason)
                    fresh[health.issuer, health.profile] = health
                    met = error
                    if all_refuse(names, (*known, *fresh.values()), self._clock()):
                        raise
                    continue
            await self._candidates.well(name, "", await self._candidates.healths(profile))
            if choice.instead_of:
                log.warning("issuer_failover", profile=profile, issuer=name)
            return do.OrderPlaced(name, url)

    async def authorize(self, credential: Credential, issuer: str, order_url: str) -> Outcome:
        """The order, ready."""

        try:
            async with (
                self._candidates.slot(issuer),
                self._counterparts.issuer(credential.profile, issuer) as (acme, account),
            ):

                async def spc_token() -> str:
                    bound_to, token = self._tokens.pop(credential.id, ("", None))
                    if token is None or bound_to != account.key_id:
                        token = await self._spc_token(credential, issuer, account)
                    return token.jwt

                await acme.authorize(order_url, spc_token)
        finally:
            self._tokens.pop(credential.id, None)
        return do.OrderReady()

    async def finalize(
        self, credential: Credential, birth: BirthRecord, issuer: str, order_url: str
    ) -> Outcome:
        """The CSR, signed in the HSM and taken by the STI-CA."""
        profile = self.profile(credential)
        rules = self._configuration.issuers[issuer].resolved()
        crl_url = self._counterparts.authority(profile.authority).crl_url
        crl_issuer = ""
        if rules.csr_crldp is CsrCrldp.URI_AND_ISSUER:
            crl_issuer = await self._anchors.crl_issuer(profile.authority)

        def made(hsm: Hsm) -> bytes:
            return certs.build_csr(
                birth.public_key,
                lambda digest: hsm.sign(credential.key_id, digest),
                spc=profile.spc,
                rules=rules,
                subject=profile.subject,
                suffix=credential.id,
                crl_url=crl_url,
                crl_issuer=crl_issuer,
            )

        csr = await self._hsm(made)
        async with (
            self._candidates.slot(issuer),
            self._counterparts.issuer(credential.profile, issuer) as (acme, _),
        ):
            await acme.finalize(order_url, csr)
        return do.CsrTaken()

    async def collect(
        self, credential: Credential, birth: BirthRecord, issuer: str, order_url: str
    ) -> Outcome:
        """The chain, downloaded and accepted."""
        profile = self.profile(credential)
        authority = self._configuration.authorities[profile.authority]
        # The list first: without it nothing can be accepted, and the chain stays at the STI-CA.
        trusted = await self._anchors.material(profile.authority)
        async with (
            self._candidates.slot(issuer),
            self._counterparts.issuer(credential.profile, issuer) as (acme, _),
        ):
            issued = await acme.collect(order_url)
        try:
            accepted = gate.accept(
                issued.pem,
                public_key=birth.public_key,
                spc=profile.spc,
                now=self._clock(),
                roots=trusted.trust_list.roots + await self.rehearsal_roots(credential, issuer),
                crl=trusted.crl.der if trusted.crl else None,
                policy_oids=authority.policy_oids,
                country=authority.country,
                crl_url=self._counterparts.authority(profile.authority).crl_url,
            )
        except PeerRefused as error:
            _refused(error, self._keep(credential, issued.pem))
        known = await self._candidates.healths(credential.profile)
        await self._candidates.well(issuer, credential.profile, known)
        return do.ChainAccepted(
            Certificate(
                chain=accepted.chain,
                issuer=issuer,
                order_url=order_url,
                serial=accepted.serial,
                spki_sha256=accepted.spki_sha256,
                not_before=accepted.not_before,
                not_after=accepted.not_after,
                issuer_x5u=issued.x5u,
            )
        )

    async def _order(self, credential: Credential, name: str, active: Credential | None) -> str:
        """The URL of a new order. The SPC token for it is there before it is made."""
        profile = self.profile(credential)
        if name not in self._configuration.issuers:
            raise Misconfigured(
                "ISSUER_UNKNOWN",
                f"There is no STI-CA {name!r} in the configuration any more.",
                next_step="Put it back, or leave it out of the profile.",
            )
        rules = self._configuration.issuers[name].resolved()
        account = await self._counterparts.account(credential.profile, name)
        token = await self._spc_token(credential, name, account)
        # No notBefore: it would be past when it arrives, and some STI-CAs date leaves back.
        not_after = self._clock() + rules.validity_days * DAY if rules.validity_days else None
        async with self._counterparts.issuer(credential.profile, name) as (acme, _):
            order = await acme.new_order(
                tnauthlist.spc_list(profile.spc),
                not_after=not_after,
                replaces=_replaced(active, name) if not credential.rehearsal else "",
            )
        self._tokens[credential.id] = (account.key_id, token)
        return order.url

    async def _spc_token(self, credential: Credential, issuer: str, account: Account) -> SpcToken:
        profile = self.profile(credential)
        rules = self._configuration.issuers[issuer].resolved()
        assert account.birth is not None  # noqa: S101  the account's key was made
        return await self._counterparts.authority(profile.authority).spc_token(
            account_id=profile.account_id or profile.spc,
            spc_tkvalue=tnauthlist.to_text(
                tnauthlist.spc_list(profile.spc), rules.tnauthlist_encoding
            ),
            fingerprint=jose.fingerprint(
                account.birth.public_key, rules.fingerprint_kind, rules.fingerprint_case
            ),
            profile=credential.profile,
            spc=profile.spc,
            now=self._clock(),
        )

    def _keep(self, credential: Credential, pem: str) -> Path:
        """Keeps what the gate refused, for a person to look at."""
        path = Path(self._configuration.state) / "rejected" / f"{credential.id}.pem"
        try:
            path.parent.mkdir(mode=0o750, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(pem)
        except OSError as error:
            log.error("artefact_not_kept", path=str(path), error=error.strerror)
        return path


def _later(later: Later, known: Iterable[Health], met: KmsdError | None, now: int) -> do.Deferred:
    """Nobody to ask: what the last one asked said, or said when it was asked last."""
    pause = max(1, later.until - now)
    if met is not None:
        return do.Deferred(
            met.reason, met.message, met.next_step, retry_after=pause, problem=words(met)
        )
    fared = next((health for health in known if health.until == later.until), None)
    return do.Deferred(
        fared.reason if fared else "ISSUERS_IN_BACK_OFF",
        fared.message if fared else "Every STI-CA of the profile is left alone for a while.",
        "To ask without waiting for that: kmsctl rotate, or kmsctl enroll.",
        retry_after=pause,
    )


def _refused(error: PeerRefused, path: Path) -> Never:
    facts = {name: text for name, text in error.metadata.items() if name != "peer"}
    raise PeerRefused(
        error.reason,
        error.message,
        peer=error.peer,
        problem=error.problem,
        next_step=f"What was issued is kept in {path}. Show it to the STI-CA.",
        artefact=str(path),
        **facts,
    ) from error


def _replaced(active: Credential | None, issuer: str) -> str:
    """What RFC 9773 calls the certificate that is renewed, where the same STI-CA issued it."""
    certificate = do.certificate_of(active.state) if active else None
    if certificate is None or certificate.issuer != issuer:
        return ""
    return certificate_id(certs.leaf_der(certificate.chain))
