"""The Signing service: typed claims in, Identity header values out.

One path for one call and for many: access, keyring, claims to canonical signing input, HSM,
Identity header. Errors are per item, so one bad call never spoils a frame. No database, no
network, no lock shared between processes, no log line per call.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from hashlib import sha256
from typing import Any

import grpc
import structlog
from kmsapi.v1 import signing_pb2, signing_pb2_grpc
from kmsapi.v1.signing_pb2 import (
    ActiveCredential,
    CredentialEvent,
    Passport,
    SignRequest,
    SignResponse,
    Synced,
    WatchCredentialsRequest,
)

from kmsd import passport, settings
from kmsd.access import PLAINTEXT, UNIX, Grant, Grants, PeerGrants, certificate_identities
from kmsd.answers import refusal
from kmsd.claims import claims_of
from kmsd.counters import Counters, Kind, stages
from kmsd.errors import Exhausted, Invalid, KmsdError, Precondition, Unavailable
from kmsd.keyring import Entry
from kmsd.lanes import Lanes
from kmsd.live import LOST, Key, Live
from kmsd.uuids import new_uuid

SERVICE = signing_pb2.DESCRIPTOR.services_by_name["Signing"].full_name
FRAMES_AHEAD = 4
"""Frames of one stream that wait for their signatures; more stay unread in the connection."""
Context = grpc.aio.ServicerContext[Any, Any]
log = structlog.get_logger()


class Signing(signing_pb2_grpc.SigningServicer):
    """The service of one signer. Closed until `opened` gives it something to sign with.

    Its methods raise KmsdError; the listener makes statuses of them.
    """

    def __init__(self, grants: Grants, signer: settings.Signer, profiles: Collection[str]) -> None:
        self._grants = grants
        self._profiles = frozenset(profiles)
        self._frame_items = signer.frame_items
        self._freshness = signer.freshness_seconds
        self.counters = Counters(profiles, signer.trace_every)
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
        self.counters.calls += 1
        if context.time_remaining() == 0:  # under overload: nobody waits for this one any more
            self.counters.refused("DEADLINE_PASSED", len(request.passports))
            raise Unavailable("DEADLINE_PASSED", "The deadline passed before this call's turn.")
        frame = self._frame(request, self._peer(context))
        if len(frame.outcomes) == 1 and isinstance(frame.outcomes[0], KmsdError):
            raise frame.outcomes[0]
        frame.start()
        return await frame.signed()

    async def SignStream(
        self, request_iterator: AsyncIterator[SignRequest], context: Context
    ) -> AsyncIterator[SignResponse]:
        """The same over one stream: a frame that is refused as a whole does not end it.

        While the HSM signs one frame the next ones are read, up to FRAMES_AHEAD of them.
        """
        peer = self._peer(context)
        frames: asyncio.Queue[Frame | SignResponse | None] = asyncio.Queue(FRAMES_AHEAD)

        async def read() -> None:
            try:
                async for request in request_iterator:
                    frame = self._begun(request, peer)
                    try:
                        await frames.put(frame)
                    except asyncio.CancelledError:  # its caller has gone
                        _drop(frame)
                        raise
            finally:
                await frames.put(None)

        reader = asyncio.create_task(read())
        self.counters.streams += 1
        try:
            while (frame := await frames.get()) is not None:
                yield frame if isinstance(frame, SignResponse) else await _answered(frame)
        finally:
            self.counters.streams -= 1
            reader.cancel()
            while not frames.empty():  # of a caller who has gone
                _drop(frames.get_nowait())
        await reader

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

    def _begun(self, request: SignRequest, peer: PeerGrants) -> "Frame | SignResponse":
        self.counters.frames += 1
        try:
            frame = self._frame(request, peer)
        except KmsdError as error:
            return _refused(request.sequence, error)
        frame.start()
        return frame

    def _frame(self, request: SignRequest, peer: PeerGrants) -> "Frame":
        """One frame under one epoch, not yet signed. Raises KmsdError when it is refused whole."""
        arrived = time.perf_counter()
        try:
            live, lanes = self._opened()
            grant = peer.for_profile(request.profile)
            key = live.key(request.profile)
            now = int(time.time())
            self._check(request, key.entry, now)
            lanes.admit(len(request.passports))
        except KmsdError as error:
            self.counters.refused(error.reason, len(request.passports))
            raise
        frame = Frame(request.sequence, live.epoch, key, lanes, self.counters, peer, arrived)
        for message in request.passports:
            try:
                frame.add(*self._draft(message, grant, now))
            except KmsdError as error:
                self.counters.refused(error.reason)
                frame.outcomes.append(error)
        frame.drafted = time.perf_counter()
        return frame

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

    def _draft(self, message: Passport, grant: Grant, now: int) -> tuple[str, str, str, str]:
        """PASSporT type, attestation, payload segment, origid."""
        claims, ppt, attest = claims_of(message)
        grant.check(ppt, attest)
        payload = passport.payload(claims, now=now, freshness=self._freshness, new_origid=new_uuid)
        return ppt, attest, payload.segment, payload.origid

    def _peer(self, context: Context) -> PeerGrants:
        return self._grants.of(identities(context))


class Frame:
    """A frame on its way: what was refused, and what is to be signed for the rest.

    outcomes: for each PASSporT the error, or its draft: type, payload segment, origid.
    arrived, drafted: when, in seconds of perf_counter.
    """

    __slots__ = (
        "_arrived",
        "_counters",
        "_digests",
        "_key",
        "_kinds",
        "_lanes",
        "_peer",
        "_signing",
        "drafted",
        "epoch",
        "outcomes",
        "sequence",
    )

    def __init__(
        self,
        sequence: int,
        epoch: int,
        key: Key,
        lanes: Lanes,
        counters: Counters,
        peer: PeerGrants,
        arrived: float,
    ) -> None:
        self.sequence = sequence
        self.epoch = epoch
        self.outcomes: list[tuple[str, str, str] | KmsdError] = []
        self._key = key
        self._lanes = lanes
        self._digests: list[bytes] = []
        self._signing: asyncio.Future[list[bytes]] | None = None
        self._kinds: list[Kind] = []
        self._counters = counters
        self._peer = peer
        self._arrived = self.drafted = arrived

    def add(self, ppt: str, attest: str, payload: str, origid: str) -> None:
        """One more PASSporT to sign."""
        signed = passport.signing_input(self._key.header(ppt), payload)
        self._digests.append(sha256(signed).digest())
        self.outcomes.append((ppt, payload, origid))
        self._kinds.append((ppt, attest))

    def start(self) -> None:
        """Lets the HSM begin; `signed` waits for it."""
        if self._digests:
            self._signing = self._lanes.sign(self._key.handles, self._digests)

    def drop(self) -> None:
        """Nobody waits for it any more: what has not begun does not begin."""
        if self._signing is not None:
            self._signing.cancel()

    async def signed(self) -> SignResponse:
        """The answer. Raises Unavailable when the HSM is lost."""
        try:
            signatures = iter(await self._signing if self._signing is not None else ())
        except KmsdError as error:
            self._counters.refused(error.reason, len(self._digests))
            raise
        signed_at = time.perf_counter()
        header, x5u = self._key.header, self._key.entry.x5u
        response = SignResponse(sequence=self.sequence, epoch=self.epoch)
        add = response.results.add
        for outcome in self.outcomes:
            if isinstance(outcome, KmsdError):
                add().refusal.CopyFrom(refusal(outcome))
                continue
            ppt, payload, origid = outcome
            signed = add().signed
            signed.identity = passport.identity(header(ppt), payload, next(signatures), x5u, ppt)
            signed.origid = origid
        self._count(signed_at)
        return response

    def _count(self, signed: float) -> None:
        """It is answered: counts it and, one in many, says in the log what its time went into."""
        profile, now = self._key.entry.profile, time.perf_counter()
        if self._counters.answered(profile, self._kinds, self.epoch, now - self._arrived):
            draft, hsm, answer = stages(self._arrived, self.drafted, signed, now)
            log.info(
                "trace",
                profile=profile,
                epoch=self.epoch,
                sequence=self.sequence,
                caller=self._peer.kind,
                items=len(self.outcomes),
                signed=len(self._kinds),
                draft_us=draft,
                hsm_us=hsm,
                answer_us=answer,
            )


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


def _drop(frame: "Frame | SignResponse | None") -> None:
    if isinstance(frame, Frame):
        frame.drop()


async def _answered(frame: Frame) -> SignResponse:
    try:
        return await frame.signed()
    except KmsdError as error:
        return _refused(frame.sequence, error)


def _refused(sequence: int, error: KmsdError) -> SignResponse:
    return SignResponse(sequence=sequence, refusal=refusal(error))


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
