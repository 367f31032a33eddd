"""The Signing service: typed claims in, Identity header values out.

One path for one call and for many: access, keyring, claims to canonical signing input, HSM,
Identity header. Errors are per item, so one bad call never spoils a frame. No database, no
network, no lock shared between processes, no log line per call.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any
from uuid import uuid4

import grpc
from kmsapi.v1 import signing_pb2, signing_pb2_grpc
from kmsapi.v1.signing_pb2 import (
    ActiveCredential,
    CredentialEvent,
    Passport,
    Signed,
    SignRequest,
    SignResponse,
    Synced,
    WatchCredentialsRequest,
)

from kmsd import passport, settings
from kmsd.access import PLAINTEXT, UNIX, Grant, Grants, PeerGrants, certificate_identities
from kmsd.answers import refusal
from kmsd.claims import claims_of
from kmsd.errors import Exhausted, Invalid, KmsdError, Precondition, Unavailable
from kmsd.keyring import Entry
from kmsd.lanes import Lanes
from kmsd.live import LOST, Key, Live

SERVICE = signing_pb2.DESCRIPTOR.services_by_name["Signing"].full_name
Context = grpc.aio.ServicerContext[Any, Any]


class Signing(signing_pb2_grpc.SigningServicer):
    """The service of one signer. Closed until `opened` gives it something to sign with.

    Its methods raise KmsdError; the listener makes statuses of them.
    """

    def __init__(self, grants: Grants, signer: settings.Signer, profiles: Collection[str]) -> None:
        self._grants = grants
        self._profiles = frozenset(profiles)
        self._frame_items = signer.frame_items
        self._freshness = signer.freshness_seconds
        self._open: tuple[Live, Lanes] | None = None
        self._why: KmsdError = Unavailable("SIGNER_STARTING", "This signer is starting.")

    @property
    def is_open(self) -> bool:
        """Whether it can sign."""
        return self._open is not None

    def opened(self, live: Live, lanes: Lanes) -> None:
        """Signs from now on."""
        self._open = (live, lanes)

    def closed(self, why: KmsdError) -> bool:
        """Refuses every call from now on, as UNAVAILABLE and for the reason of `why`.

        Says whether that is news.
        """
        news = self._open is not None or self._why.reason != why.reason
        self._open = None
        self._why = Unavailable(why.reason, why.message, next_step=why.next_step)
        return news

    async def Sign(self, request: SignRequest, context: Context) -> SignResponse:
        """Unary: what is refused as a whole, or alone in its frame, is the call's status."""
        if context.time_remaining() == 0:  # under overload: nobody waits for this one any more
            raise Unavailable("DEADLINE_PASSED", "The deadline passed before this call's turn.")
        epoch, outcomes = await self._frame(request, self._peer(context))
        if len(outcomes) == 1 and isinstance(outcomes[0], KmsdError):
            raise outcomes[0]
        return _response(request.sequence, epoch, outcomes)

    async def SignStream(
        self, request_iterator: AsyncIterator[SignRequest], context: Context
    ) -> AsyncIterator[SignResponse]:
        """The same over one stream: a frame that is refused as a whole does not end it."""
        peer = self._peer(context)
        async for request in request_iterator:
            try:
                epoch, outcomes = await self._frame(request, peer)
            except KmsdError as error:
                yield SignResponse(sequence=request.sequence, refusal=refusal(error))
            else:
                yield _response(request.sequence, epoch, outcomes)

    async def WatchCredentials(
        self, request: WatchCredentialsRequest, context: Context
    ) -> AsyncIterator[CredentialEvent]:
        """What the caller's profiles sign with, `synced`, and then every change."""
        peer = self._peer(context)
        chosen = frozenset(request.profiles)
        live, _ = self._opened()
        for profile in chosen:
            peer.for_profile(profile)
            if profile not in self._profiles:  # one that is configured may become active
                live.key(profile)

        def concerns(profile: str) -> bool:
            return profile in chosen if chosen else peer.may_see(profile)

        with live.watch() as changes:
            start = live.epoch  # it may go on while these are sent; what it changes comes after
            for entry in live.entries():
                if concerns(entry.profile):
                    yield CredentialEvent(epoch=start, active=_active(entry))
            yield CredentialEvent(epoch=start, synced=Synced())
            while (change := await changes.get()) is not LOST:
                epoch, entry_or_none, withdrawn = change
                if entry_or_none is not None:
                    if concerns(entry_or_none.profile):
                        yield CredentialEvent(epoch=epoch, active=_active(entry_or_none))
                elif concerns(withdrawn):
                    yield CredentialEvent(epoch=epoch, withdrawn=withdrawn)
        raise Exhausted("WATCHER_TOO_SLOW", "Changes were not read in time; watch again.")

    async def _frame(
        self, request: SignRequest, peer: PeerGrants
    ) -> tuple[int, list[Signed | KmsdError]]:
        """One frame under one epoch. Raises KmsdError when it is refused as a whole."""
        live, lanes = self._opened()
        grant = peer.for_profile(request.profile)
        key = live.key(request.profile)
        epoch = live.epoch
        now = int(time.time())
        self._check(request, key.entry, now)
        outcomes: list[Signed | KmsdError] = []
        drafts: list[_Draft] = []
        for message in request.passports:
            try:
                draft = self._draft(message, key, grant, now, len(outcomes))
            except KmsdError as error:
                outcomes.append(error)
            else:
                drafts.append(draft)
                outcomes.append(draft.signed)
        if drafts:
            signatures = await lanes.sign(key.handles, [draft.digest for draft in drafts])
            for draft, signature in zip(drafts, signatures, strict=True):
                draft.signed.identity = passport.identity(
                    draft.header, draft.payload, signature, key.entry.x5u, draft.ppt
                )
        return epoch, outcomes

    def _opened(self) -> tuple[Live, Lanes]:
        if self._open is None:
            raise self._why
        return self._open

    def _check(self, request: SignRequest, entry: Entry, now: int) -> None:
        items = len(request.passports)
        if items > self._frame_items:
            raise Invalid(
                "FRAME_TOO_LARGE",
                f"A frame holds at most {self._frame_items} PASSporTs, this one has {items}.",
                next_step="Split it.",
                limit=str(self._frame_items),
            )
        if items == 0:
            raise Invalid("FRAME_EMPTY", "There is no PASSporT in this frame.")
        if not entry.not_before <= now < entry.not_after:
            raise Precondition(
                "CREDENTIAL_NOT_VALID",
                f"The certificate of profile {entry.profile} is not valid now.",
                next_step="An operator must look: `kmsctl profiles`.",
                profile=entry.profile,
            )

    def _draft(self, message: Passport, key: Key, grant: Grant, now: int, item: int) -> "_Draft":
        claims, ppt, attest = claims_of(message)
        grant.check(ppt, attest)
        payload = passport.payload(
            claims, now=now, freshness=self._freshness, new_origid=_new_origid
        )
        return _Draft(ppt, key.headers[ppt], payload.segment, payload.origid)

    def _peer(self, context: Context) -> PeerGrants:
        return self._grants.of(identities(context))


class _Draft:
    """One PASSporT before its signature."""

    __slots__ = ("digest", "header", "payload", "ppt", "signed")

    def __init__(self, ppt: str, header: str, payload: str, origid: str) -> None:
        self.ppt = ppt
        self.header = header
        self.payload = payload
        self.digest = hashlib.sha256(f"{header}.{payload}".encode("ascii")).digest()
        self.signed = Signed(origid=origid)


def identities(context: Context) -> list[str]:
    """Who calls, as [[callers]] names them: by the client certificate, or by the way they came."""
    facts = context.auth_context()
    if facts.get("transport_security_type") != [b"ssl"]:
        return [UNIX if context.peer().startswith("unix:") else PLAINTEXT]
    return certificate_identities(
        uris=facts.get("peer_uri", ()),
        dns_names=facts.get("peer_dns", ()),
        common_names=facts.get("x509_common_name", ()),
    )


def _response(sequence: int, epoch: int, outcomes: Sequence[Signed | KmsdError]) -> SignResponse:
    response = SignResponse(sequence=sequence, epoch=epoch)
    for outcome in outcomes:
        result = response.results.add()
        if isinstance(outcome, KmsdError):
            result.refusal.CopyFrom(refusal(outcome))
        else:
            result.signed.CopyFrom(outcome)
    return response


def _active(entry: Entry) -> ActiveCredential:
    return ActiveCredential(
        profile=entry.profile,
        spc=entry.spc,
        credential=entry.credential,
        x5u=entry.x5u,
        spki_sha256=entry.spki_sha256,
        not_before=entry.not_before,
        not_after=entry.not_after,
    )


def _new_origid() -> str:
    return str(uuid4())
