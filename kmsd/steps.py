"""The steps of an enrollment, carried out on the real world: one action in, one outcome out.

Every step can be repeated: keys are looked for by an id chosen before, orders are kept by URL,
publishing the same bytes again changes nothing. What comes next is not decided here
(`enrollment`), and nothing that the keeper stores is stored here.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from uuid import uuid4

from kmsd import enrollment as do
from kmsd import passport, verification
from kmsd.anchors import Anchors
from kmsd.candidates import Candidates, words
from kmsd.enrollment import DAY, Action, Outcome
from kmsd.errors import KmsdError, Misconfigured, Unavailable
from kmsd.hsm import Hsm
from kmsd.hsmthread import HsmThread
from kmsd.issuance import Issuance
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
from kmsd.settings import Configuration, X5uSource
from kmsd.switch import Switch

HOPELESS = frozenset(
    {"X5U_TAKEN", "PRIVATE_KEY_REFUSED", "CHAIN_NOT_PUBLISHABLE", "VERIFICATION_FAILED"}
)
"""Reasons for which a certificate will never be of use; another one may be."""
AT_ONCE = 16
"""Steps at the HSM, the repository and the signers at the same time; the rest wait their turn."""
CANARY_TN = "12015550100"
"""A number set aside for fiction: the canary PASSporT calls nobody."""


class Steps:
    """Everything an action may need, and one method for each."""

    def __init__(
        self,
        configuration: Configuration,
        hsm: HsmThread,
        candidates: Candidates,
        issuance: Issuance,
        anchors: Anchors,
        repository: Repository,
        switch: Switch,
        clock: Callable[[], int],
    ) -> None:
        self._configuration = configuration
        self._hsm = hsm
        self._candidates = candidates
        self._issuance = issuance
        self._anchors = anchors
        self._repository = repository
        self._switch = switch
        self._clock = clock
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def perform(
        self, credential: Credential, action: Action, *, insisted: bool = False
    ) -> Outcome:
        """Does `action` and says what came of it; raises a KmsdError only where the store does.

        insisted: a person wants it now. A refusal before there is a certificate ends the
        credential, where no other STI-CA is left to be asked. A certificate that is there is not
        given up as long as it can be of use: what stands in its way is tried again.
        """
        try:
            match action, credential.state:
                # Each at its STI-CA's own pace: one that hangs holds up nobody else.
                case do.PlaceOrder(), Keyed():
                    return await self._issuance.place_order(credential, insisted=insisted)
                case do.Authorize(), Ordered(_, issuer, url):
                    return await self._issuance.authorize(credential, issuer, url)
                case do.Finalize(), Authorized(birth, issuer, url):
                    return await self._issuance.finalize(credential, birth, issuer, url)
                case do.Collect(), Finalizing(birth, issuer, url):
                    return await self._issuance.collect(credential, birth, issuer, url)
            async with self._at_once:
                return await self._perform(credential, action)
        except KmsdError as error:
            given_up = self._candidates.given_up
            abandoned = None if credential.rehearsal else await given_up(credential, error)
            if abandoned is not None:
                return abandoned
            if isinstance(credential.state, Published) and error.reason == "VERIFICATION_FAILED":
                issuer = credential.state.certificate.issuer
                await self._candidates.fared(credential.profile, issuer, error)
            if self._ends(credential, error):
                return do.Ended(
                    error.reason,
                    error.message,
                    destroy_at=self._clock() + self._hold(credential),
                    next_step=error.next_step,
                    problem=words(error),
                    artefact=error.metadata.get("artefact", ""),
                )
            return do.Deferred(
                error.reason,
                error.message,
                error.next_step,
                retry_after=int(error.retry_after) if isinstance(error, Unavailable) else 0,
                problem=words(error),
            )

    def _ends(self, credential: Credential, error: KmsdError) -> bool:
        match credential.state:
            case Issued(certificate=certificate) | Published(certificate=certificate):
                if self._switch.holds(credential):
                    return False
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
            case do.Publish(), Issued(certificate=certificate):
                return await self._publish(credential, certificate)
            case do.Activate(), Published() as state:
                # Once the signers were told, there is no way back but another switch: what they
                # sign with must not fail for what the world thinks of it meanwhile.
                if not self._switch.holds(credential):
                    await self._canary(credential, state)
                return do.Switched(await self._switch.activate(credential))
            case do.Try(), Published() as state:
                await self._canary(credential, state)
                return do.Passed()
            case do.DestroyKey(), state:
                return await self._destroy(credential, do.birth_of(state))
            case _:
                raise AssertionError(f"{action} in {credential.state}")

    async def _publish(self, credential: Credential, certificate: Certificate) -> Outcome:
        rules = self._configuration.issuers[certificate.issuer].resolved()
        x5u = certificate.issuer_x5u if rules.x5u_source is X5uSource.ISSUER else ""
        if not x5u:
            x5u = await self._repository.publish(credential.id, certificate.chain)
        await self._repository.fetch_back(x5u, certificate.chain)
        return do.ChainPublic(x5u)

    async def _canary(self, credential: Credential, state: Published) -> None:
        """Signs a PASSporT with the new key and verifies it as any STI-VS would, by what its x5u
        serves."""
        x5u, issuer = state.x5u, state.certificate.issuer
        chain = await self._repository.fetch_back(x5u, state.certificate.chain)
        rehearsed = await self._issuance.rehearsal_roots(credential, issuer)
        trusted = await self._anchors.material(self._issuance.profile(credential).authority)
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
            roots=trusted.trust_list.roots + rehearsed,
            crl=trusted.crl.der if trusted.crl else None,
            now=now,
        )

    async def _destroy(self, credential: Credential, birth: BirthRecord | None) -> Outcome:
        if credential.rehearsal:
            await self._repository.withdraw(credential.id)
        if birth is not None:
            try:
                await self._hsm(Hsm.destroy, credential.key_id, birth.public_key)
            except KmsdError as error:
                if error.reason != "HSM_KEY_ABSENT":  # done before, by us or by a person
                    raise
        return do.KeyGone()

    def _hold(self, credential: Credential) -> int:
        if credential.rehearsal:
            return 0
        profile = self._configuration.profiles.get(credential.profile)
        return int(profile.policy.hold_key_days * DAY) if profile else DAY


def _origid() -> str:
    return str(uuid4())


def clock() -> int:
    """Seconds since the epoch, UTC."""
    return int(time.time())
