"""The Admin service: what kmsctl asks of the keeper. No decision is made here."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog
from kmsapi.v1 import admin_pb2 as pb
from kmsapi.v1 import admin_pb2_grpc

from kmsd.anchors import Anchors
from kmsd.answers import abort
from kmsd.counterparts import Counterparts
from kmsd.errors import KmsdError, NotFound
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
from kmsd.overview import Overview
from kmsd.preconditions import unknown_profile
from kmsd.rehearsal import Rehearsal
from kmsd.revoking import Revoking
from kmsd.rollback import Rollback
from kmsd.settings import Configuration
from kmsd.store import Store
from kmsd.views import (
    account_message,
    credential_message,
    done,
    explanation_message,
    planned_message,
)

SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name
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
        overview: Overview,
        anchors: Anchors,
        revoking: Revoking,
        rollback: Rollback,
        rehearsal: Rehearsal,
        outlook: Outlook,
        counterparts: Counterparts,
        clock: Callable[[], int],
    ) -> None:
        self._configuration = configuration
        self._store = store
        self._keeper = keeper
        self._movers = movers
        self._overview = overview
        self._anchors = anchors
        self._revoking = revoking
        self._rollback = rollback
        self._rehearsal = rehearsal
        self._outlook = outlook
        self._counterparts = counterparts
        self._clock = clock

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        try:
            return await self._overview.status()
        except KmsdError as error:
            await abort(context, error)

    async def ListProfiles(
        self, request: pb.ListProfilesRequest, context: Context
    ) -> pb.ListProfilesResponse:
        try:
            return pb.ListProfilesResponse(profiles=await self._overview.profiles())
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
            before = await self._overview.trust(name)
            await self._anchors.forget(name)
            return pb.ForgottenTrust(before=before, after=await self._overview.trust(name))
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
