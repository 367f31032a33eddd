"""The steps of an enrollment, carried out on the real world: one action in, one outcome out.

Every step can be repeated: keys are looked for by an id chosen before, orders are kept by URL,
publishing the same bytes again changes nothing. What comes next is not decided here
(`enrollment`), and nothing that the keeper stores is stored here.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import structlog

from kmsd import certs, gate, jose, passport, tnauthlist, verification
from kmsd import enrollment as do
from kmsd.anchors import Anchors
from kmsd.counterparts import Counterparts
from kmsd.enrollment import DAY, Action, Outcome
from kmsd.errors import KmsdError, Misconfigured, PeerRefused, Unavailable
from kmsd.hsm import Hsm
from kmsd.hsmthread import HsmThread
from kmsd.model import (
    Authorized,
    BirthRecord,
    Certificate,
    Credential,
    Finalizing,
    Issued,
    Keyed,
    New,
    Ordered,
    Published,
)
from kmsd.repository import Repository
from kmsd.settings import Configuration, CsrCrldp, Profile, X5uSource
from kmsd.spctoken import SpcToken
from kmsd.switch import Switch

HOPELESS = frozenset(
    {"X5U_TAKEN", "PRIVATE_KEY_REFUSED", "CHAIN_NOT_PUBLISHABLE", "VERIFICATION_FAILED"}
)
"""Reasons for which a certificate will never be of use; another one may be."""
CANARY_TN = "12015550100"
"""A number set aside for fiction: the canary PASSporT calls nobody."""

log = structlog.get_logger()


class Steps:
    """Everything an action may need, and one method for each."""

    def __init__(
        self,
        configuration: Configuration,
        hsm: HsmThread,
        counterparts: Counterparts,
        anchors: Anchors,
        repository: Repository,
        switch: Switch,
        clock: Callable[[], int],
    ) -> None:
        self._configuration = configuration
        self._hsm = hsm
        self._counterparts = counterparts
        self._anchors = anchors
        self._repository = repository
        self._switch = switch
        self._clock = clock
        # An SPC token is fetched and checked before the order and used right after it. It is not
        # stored: after a restart another one is fetched, bound to the same account.
        self._tokens: dict[str, SpcToken] = {}

    async def perform(self, credential: Credential, action: Action) -> Outcome:
        """Does `action` and says what came of it; never raises a KmsdError.

        A refusal before there is a certificate ends the credential. A certificate that is there
        is not given up as long as it can be of use: what stands in its way is tried again.
        """
        try:
            return await self._perform(credential, action)
        except KmsdError as error:
            if self._ends(credential, error):
                return do.Ended(
                    error.reason,
                    error.message,
                    destroy_at=self._clock() + self._hold(credential),
                    next_step=error.next_step,
                    problem=_words(error),
                    artefact=error.metadata.get("artefact", ""),
                )
            return do.Deferred(
                error.reason,
                error.message,
                error.next_step,
                retry_after=int(error.retry_after) if isinstance(error, Unavailable) else 0,
                problem=_words(error),
            )

    def _ends(self, credential: Credential, error: KmsdError) -> bool:
        match credential.state:
            case Issued(certificate=certificate) | Published(certificate=certificate):
                return error.reason in HOPELESS or certificate.not_after <= self._clock()
            case New() | Keyed() | Ordered() | Authorized() | Finalizing():
                # Absence is not deletion: another token may be in the slot.
                absent = error.reason == "HSM_KEY_ABSENT"
                return not (absent or isinstance(error, Unavailable | Misconfigured))
            case _:
                return False

    async def _perform(self, credential: Credential, action: Action) -> Outcome:
        match action, credential.state:
            case do.GenerateKey(), New():
                label = f"kmsd passport {credential.profile} {credential.id}"
                return do.KeyMade(
                    await self._hsm(Hsm.generate, credential.key_id, label, self._clock())
                )
            case do.PlaceOrder(), Keyed():
                return await self._place_order(credential)
            case do.Authorize(), Ordered(issuer=issuer, order_url=url):
                return await self._authorize(credential, issuer, url)
            case do.Finalize(), Authorized(birth, issuer, url):
                return await self._finalize(credential, birth, issuer, url)
            case do.Collect(), Finalizing(birth, issuer, url):
                return await self._collect(credential, birth, issuer, url)
            case do.Publish(), Issued(certificate=certificate):
                return await self._publish(credential, certificate)
            case do.Activate(), Published(birth, certificate, x5u):
                served = await self._repository.fetch_back(x5u, certificate.chain)
                await self._canary(credential, served, x5u)
                return do.Switched(await self._switch.activate(credential))
            case do.DestroyKey(), state:
                return await self._destroy(credential, do.birth_of(state))
            case _:
                raise AssertionError(f"{action} in {credential.state}")

    async def _place_order(self, credential: Credential) -> Outcome:
        profile = self._profile(credential)
        name = profile.issuers[0]
        rules = self._configuration.issuers[name].resolved()
        token = await self._spc_token(credential, name)
        # No notBefore: it would be past when it arrives, and some STI-CAs date leaves back.
        not_after = self._clock() + rules.validity_days * DAY if rules.validity_days else None
        async with self._counterparts.issuer(credential.profile, name) as (acme, _):
            order = await acme.new_order(tnauthlist.spc_list(profile.spc), not_after=not_after)
        self._tokens[credential.id] = token
        return do.OrderPlaced(name, order.url)

    async def _spc_token(self, credential: Credential, issuer: str) -> SpcToken:
        profile = self._profile(credential)
        rules = self._configuration.issuers[issuer].resolved()
        account = await self._counterparts.account(credential.profile, issuer)
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

    async def _authorize(self, credential: Credential, issuer: str, order_url: str) -> Outcome:
        async def spc_token() -> str:
            token = self._tokens.pop(credential.id, None)
            return (token or await self._spc_token(credential, issuer)).jwt

        try:
            async with self._counterparts.issuer(credential.profile, issuer) as (acme, _):
                await acme.authorize(order_url, spc_token)
        finally:
            self._tokens.pop(credential.id, None)
        return do.OrderReady()

    async def _finalize(
        self, credential: Credential, birth: BirthRecord, issuer: str, order_url: str
    ) -> Outcome:
        profile = self._profile(credential)
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
        async with self._counterparts.issuer(credential.profile, issuer) as (acme, _):
            await acme.finalize(order_url, csr)
        return do.CsrTaken()

    async def _collect(
        self, credential: Credential, birth: BirthRecord, issuer: str, order_url: str
    ) -> Outcome:
        profile = self._profile(credential)
        authority = self._configuration.authorities[profile.authority]
        # The list first: without it nothing can be accepted, and the chain stays at the STI-CA.
        trusted = await self._anchors.material(profile.authority)
        async with self._counterparts.issuer(credential.profile, issuer) as (acme, _):
            issued = await acme.collect(order_url)
        try:
            accepted = gate.accept(
                issued.pem,
                public_key=birth.public_key,
                spc=profile.spc,
                now=self._clock(),
                roots=trusted.trust_list.roots,
                crl=trusted.crl.der if trusted.crl else None,
                policy_oids=authority.policy_oids,
                country=authority.country,
                crl_url=self._counterparts.authority(profile.authority).crl_url,
            )
        except PeerRefused as error:
            path = self._keep(credential, issued.pem)
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

    async def _publish(self, credential: Credential, certificate: Certificate) -> Outcome:
        rules = self._configuration.issuers[certificate.issuer].resolved()
        x5u = certificate.issuer_x5u if rules.x5u_source is X5uSource.ISSUER else ""
        if not x5u:
            x5u = await self._repository.publish(credential.id, certificate.chain)
        await self._repository.fetch_back(x5u, certificate.chain)
        return do.ChainPublic(x5u)

    async def _canary(self, credential: Credential, chain: str, x5u: str) -> None:
        """Signs a PASSporT with the new key and verifies it as any STI-VS would.

        chain: what x5u serves.
        """
        trusted = await self._anchors.material(self._profile(credential).authority)
        now = self._clock()
        claims = passport.Claims(
            orig=passport.Tn(CANARY_TN),
            dest_tn=(CANARY_TN,),
            dest_uri=(),
            iat=0,
            type=passport.Shaken("C"),
        )
        header = passport.header_segment("shaken", x5u)
        payload = passport.payload(claims, now=now, freshness=60, new_origid=_origid)
        signed = hashlib.sha256(passport.signing_input(header, payload.segment)).digest()
        signature = await self._hsm(Hsm.sign, credential.key_id, signed)
        identity = passport.identity(header, payload.segment, signature, x5u, "shaken")
        verification.verify(
            identity,
            chain,
            roots=trusted.trust_list.roots,
            crl=trusted.crl.der if trusted.crl else None,
            now=now,
        )

    async def _destroy(self, credential: Credential, birth: BirthRecord | None) -> Outcome:
        if birth is not None:
            try:
                await self._hsm(Hsm.destroy, credential.key_id, birth.public_key)
            except KmsdError as error:
                if error.reason != "HSM_KEY_ABSENT":  # done before, by us or by a person
                    raise
        return do.KeyGone()

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

    def _profile(self, credential: Credential) -> Profile:
        profile = self._configuration.profiles.get(credential.profile)
        if profile is None:
            raise Misconfigured(
                "PROFILE_REMOVED",
                f"Profile {credential.profile!r} is not in the configuration any more.",
                next_step="Put it back, or destroy its credentials.",
            )
        return profile

    def _hold(self, credential: Credential) -> int:
        profile = self._configuration.profiles.get(credential.profile)
        return int(profile.policy.hold_key_days * DAY) if profile else DAY


def _words(error: KmsdError) -> str:
    """The peer's own, where it was a peer."""
    return error.problem if isinstance(error, PeerRefused) else error.metadata.get("problem", "")


def _origid() -> str:
    return str(uuid4())


def clock() -> int:
    """Seconds since the epoch, UTC."""
    return int(time.time())
