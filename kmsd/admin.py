"""The Admin service: what kmsctl asks of the keeper. No decision is made here."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import structlog
from kmsapi.v1 import admin_pb2 as pb
from kmsapi.v1 import admin_pb2_grpc

from kmsd import __version__
from kmsd.alarms import alarms
from kmsd.anchors import Anchors
from kmsd.answers import abort
from kmsd.counterparts import Counterparts
from kmsd.errors import KmsdError, NotFound
from kmsd.hsmthread import HsmThread
from kmsd.keeper import Keeper
from kmsd.model import (
    KEY_COMPROMISE,
    Account,
    Active,
    Condemned,
    Credential,
    Destroyed,
    Failed,
    Rehearsed,
)
from kmsd.movers import Movers, News
from kmsd.outlook import Outlook
from kmsd.preconditions import unknown_profile
from kmsd.presence import seen
from kmsd.rehearsal import Rehearsal
from kmsd.revoking import Revoking
from kmsd.rollback import Rollback
from kmsd.settings import Configuration
from kmsd.standby import Standby
from kmsd.store import Store
from kmsd.switch import Switch
from kmsd.views import (
    account_message,
    credential_message,
    done,
    explanation_message,
    planned_message,
    profile_message,
    revocation_alarm,
    signer_message,
)

SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name
HSM_PATIENCE = 5.0
"""Seconds that a status waits for the HSM: a call that hangs cannot be cancelled."""
ENDS = (Active, Rehearsed, Failed, Destroyed)
"""States with which an enrollment is over."""
Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger()


class Admin(admin_pb2_grpc.AdminServicer):
    """One keeper's service. Whoever reaches its socket is an operator."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        keeper: Keeper,
        movers: Movers,
        hsm: HsmThread,
        anchors: Anchors,
        revoking: Revoking,
        rollback: Rollback,
        rehearsal: Rehearsal,
        outlook: Outlook,
        counterparts: Counterparts,
        switch: Switch,
        standby: Standby,
        clock: Callable[[], int],
    ) -> None:
        self._configuration = configuration
        self._store = store
        self._keeper = keeper
        self._movers = movers
        self._hsm = hsm
        self._anchors = anchors
        self._revoking = revoking
        self._rollback = rollback
        self._rehearsal = rehearsal
        self._outlook = outlook
        self._counterparts = counterparts
        self._switch = switch
        self._standby = standby
        self._clock = clock
        self._started = clock()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        try:
            return await self._status()
        except KmsdError as error:
            await abort(context, error)

    async def ListProfiles(
        self, request: pb.ListProfilesRequest, context: Context
    ) -> pb.ListProfilesResponse:
        try:
            return pb.ListProfilesResponse(profiles=await self._profiles())
        except KmsdError as error:
            await abort(context, error)

    async def ListCredentials(
        self, request: pb.ListCredentialsRequest, context: Context
    ) -> pb.ListCredentialsResponse:
        try:
            found = await asyncio.to_thread(
                self._store.credentials,
                request.profile or None,
                include_destroyed=request.include_destroyed,
            )
        except KmsdError as error:
            await abort(context, error)
        return pb.ListCredentialsResponse(credentials=map(credential_message, found))

    async def GetCredential(
        self, request: pb.GetCredentialRequest, context: Context
    ) -> pb.Credential:
        try:
            return credential_message(await self._find(request.credential), full=True)
        except KmsdError as error:
            await abort(context, error)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanations:
        try:
            profile, found = await self._outlook.explain(request.about)
        except KmsdError as error:
            await abort(context, error)
        return pb.Explanations(profile=profile, explanations=map(explanation_message, found))

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.Calendar:
        try:
            now, planned, whole = await self._outlook.plan(request.days, request.profile)
        except KmsdError as error:
            await abort(context, error)
        entries = map(planned_message, planned)
        return pb.Calendar(now=now, days=request.days, entries=entries, cut=not whole)

    async def Enroll(
        self, request: pb.EnrollRequest, context: Context
    ) -> AsyncIterator[pb.Progress]:
        try:
            credential = await self._keeper.begin(request.profile, rotate=False)
        except KmsdError as error:
            await abort(context, error)
        async for progress in self._progress(credential):
            yield progress

    async def Rotate(
        self, request: pb.RotateRequest, context: Context
    ) -> AsyncIterator[pb.Progress]:
        try:
            credential = await self._keeper.begin(request.profile, rotate=True)
        except KmsdError as error:
            await abort(context, error)
        async for progress in self._progress(credential):
            yield progress

    async def Rehearse(
        self, request: pb.RehearseRequest, context: Context
    ) -> AsyncIterator[pb.Progress]:
        try:
            credential = await self._rehearsal.begin(request.profile)
        except KmsdError as error:
            await abort(context, error)
        async for progress in self._progress(credential):
            yield progress

    async def Rollback(
        self, request: pb.RollbackRequest, context: Context
    ) -> AsyncIterator[pb.Progress]:
        try:
            credential = await self._rollback.begin(request.profile)
        except KmsdError as error:
            await abort(context, error)
        async for progress in self._progress(credential):
            yield progress

    async def Revoke(
        self, request: pb.RevokeRequest, context: Context
    ) -> AsyncIterator[pb.Progress]:
        wanted = Condemned(
            self._clock(), request.reason, request.by_certificate_key, request.even_if_active
        )
        try:
            credential = await self._find(request.credential)
            steps = self._revoking.revoke(credential, wanted, even_if_active=request.even_if_active)
            async for news in steps:
                failed = isinstance(news.credential.state, Failed) and not request.even_if_active
                yield _progress(news, ended=failed or _is_revoked(news.credential, credential.id))
        except KmsdError as error:
            log.warning("revoke_refused", credential=request.credential, reason=error.reason)
            await abort(context, error)

    async def Destroy(self, request: pb.DestroyRequest, context: Context) -> pb.Credential:
        try:
            credential = await self._find(request.credential)
            return credential_message(await self._keeper.schedule_destroy(credential))
        except KmsdError as error:
            await abort(context, error)

    async def Restore(self, request: pb.RestoreRequest, context: Context) -> pb.Credential:
        try:
            credential = await self._find(request.credential)
            if credential.condemned is not None:
                return credential_message(await self._revoking.pardon(credential))
            return credential_message(await self._keeper.restore(credential))
        except KmsdError as error:
            await abort(context, error)

    async def RollAccountKey(
        self, request: pb.RollAccountKeyRequest, context: Context
    ) -> pb.Accounts:
        try:
            # To its end even when the caller leaves: the STI-CA may have taken the new key.
            rolled = asyncio.create_task(self._roll(request))
            return pb.Accounts(accounts=map(account_message, await asyncio.shield(rolled)))
        except KmsdError as error:
            log.warning("account_key", profile=request.profile, reason=error.reason)
            await abort(context, error)

    async def ForgetTrust(
        self, request: pb.ForgetTrustRequest, context: Context
    ) -> pb.ForgottenTrust:
        try:
            name = self._authority(request.authority)
            before = await self._trust(name)
            await self._anchors.forget(name)
            return pb.ForgottenTrust(before=before, after=await self._trust(name))
        except KmsdError as error:
            await abort(context, error)

    async def GetTrust(self, request: pb.GetTrustRequest, context: Context) -> pb.Trust:
        try:
            name = self._authority(request.authority)
            material = await self._anchors.material(name)
        except KmsdError as error:
            await abort(context, error)
        crl = material.crl.der if material.crl else b""
        return pb.Trust(authority=name, roots=material.trust_list.roots, crl=crl)

    async def _progress(self, credential: Credential) -> AsyncIterator[pb.Progress]:
        async for news in self._movers.news(credential.id):
            yield _progress(news, ended=isinstance(news.credential.state, ENDS))

    async def _roll(self, request: pb.RollAccountKeyRequest) -> list[Account]:
        self._store.require_acting()
        profile = request.profile
        if profile not in self._configuration.profiles:
            raise unknown_profile(profile)
        accounts = await asyncio.to_thread(self._store.accounts)
        names = [one.issuer for one in accounts if one.profile == profile and one.url]
        if request.issuer or not names:
            names = [request.issuer or self._configuration.profiles[profile].issuers[0]]
        return [await self._counterparts.roll_key(profile, name) for name in names]

    async def _find(self, prefix: str) -> Credential:
        return await asyncio.to_thread(self._store.find, prefix)

    def _authority(self, name: str) -> str:
        names = list(self._configuration.authorities)
        if not name and len(names) == 1:
            return names[0]
        if name not in names:
            raise NotFound(
                "AUTHORITY_UNKNOWN",
                f"There is no authority {name!r} in the configuration.",
                next_step=f"There are: {', '.join(names)}.",
            )
        return name

    async def _profiles(self) -> list[pb.Profile]:
        credentials = await asyncio.to_thread(self._store.credentials)
        return [
            profile_message(name, profile, (c for c in credentials if c.profile == name))
            for name, profile in sorted(self._configuration.profiles.items())
        ]

    async def _status(self) -> pb.Status:
        now = self._clock()
        signers = seen(Path(self._configuration.run))
        status = pb.Status(
            version=__version__,
            now=now,
            started_at=self._started,
            hsm=await self._hsm_status(),
            epoch=self._switch.epoch,
            signers=map(signer_message, signers),
            trust=[await self._trust(name) for name in self._configuration.authorities],
            profiles=await self._profiles(),
        )
        trouble = self._standby.trouble
        status.standing_by = trouble.message if trouble else ""
        status.alarms.extend(revocation_alarm(*each) for each in self._revoking.failures)
        agenda = self._store.agenda
        status.alarms.extend(
            alarms(
                status,
                signers,
                None if self._standby.waits else trouble,
                healths=await asyncio.to_thread(agenda.healths),
                distrusted=await asyncio.to_thread(agenda.distrusted),
            )
        )
        return status

    async def _hsm_status(self) -> pb.HsmStatus:
        message = pb.HsmStatus(token=self._configuration.hsm.token)
        try:
            async with asyncio.timeout(HSM_PATIENCE):
                info, inventory = await self._hsm(lambda hsm: (hsm.info, hsm.inventory()))
        except KmsdError as error:
            message.trouble = str(error)
            return message
        except TimeoutError:
            message.trouble = (
                f"The HSM has not answered for {HSM_PATIENCE:.0f} s. If that lasts, only a new "
                "process helps: systemctl restart kmsd-keeper"
            )
            return message
        message.usable = True
        message.serial = info.serial
        message.module = info.module
        credentials = await asyncio.to_thread(self._store.credentials)
        accounts = await asyncio.to_thread(self._store.accounts)
        known = {one.key_id for one in credentials} | {one.key_id for one in accounts}
        known |= {one.coming_key_id for one in accounts if one.coming_key_id}
        known |= {one.former.key_id for one in accounts if one.former}
        known |= {one.key_id for one in await asyncio.to_thread(self._store.agenda.spares)}
        message.keys = len(inventory.ours & known)
        message.foreign_objects = inventory.foreign + len(inventory.ours - known)
        return message

    async def _trust(self, name: str) -> pb.TrustStatus:
        message = pb.TrustStatus(authority=name)
        if (trusted := await asyncio.to_thread(self._store.trust_list, name)) is not None:
            message.sequence = trusted.sequence
            message.roots = len(trusted.roots)
            message.list_fetched_at = trusted.fetched_at
            message.list_expires_at = trusted.expires
        if (crl := await asyncio.to_thread(self._store.revocation_list, name)) is not None:
            message.crl_number = crl.number
            message.crl_fetched_at = crl.fetched_at
            message.crl_next_update = crl.next_update
        if (trouble := self._anchors.trouble(name)) is not None:
            message.trouble = str(trouble)
        return message


def _is_revoked(credential: Credential, wanted: str) -> bool:
    """Whether a revocation of `wanted` is over with this step."""
    if credential.id != wanted or credential.revocation is None:
        return False
    compromised = credential.revocation.reason == KEY_COMPROMISE
    return not compromised or isinstance(credential.state, Destroyed)


def _progress(news: News, *, ended: bool) -> pb.Progress:
    credential = news.credential
    message = done(credential)
    if credential.trouble is not None:
        pause = max(0, credential.trouble.retry_at - news.at)
        message = f"{credential.trouble.message} It is tried again in {pause} s."
    return pb.Progress(
        at=news.at,
        credential=credential_message(credential),
        message=message,
        done=ended,
        reason=news.reason,
    )
