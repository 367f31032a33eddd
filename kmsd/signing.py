"""The Signing service: typed claims in, Identity header values out.

One path for one call and for many: access, keyring, claims to canonical signing input, HSM,
Identity header. Errors are per item, so one bad call never spoils a frame. No database, no
network, no lock shared between processes, no log line per call.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing, suppress
from typing import Any

import grpc
from kmsapi.v1 import signing_pb2, signing_pb2_grpc
from kmsapi.v1.signing_pb2 import (
    CredentialEvent,
    Passport,
    SignRequest,
    SignResponse,
    WatchCredentialsRequest,
)

from kmsd import passport, settings
from kmsd.access import PLAINTEXT, UNIX, Grant, Grants, PeerGrants, certificate_identities
from kmsd.answers import refusal
from kmsd.claims import claims_of
from kmsd.counters import Counters
from kmsd.errors import Exhausted, Invalid, KmsdError, Precondition, Unavailable
from kmsd.frame import NEVER, Frame
from kmsd.lane import late
from kmsd.lanes import Lanes
from kmsd.live import Live
from kmsd.ring import Entry
from kmsd.uuids import new_uuid
from kmsd.watching import events

SERVICE = signing_pb2.DESCRIPTOR.services_by_name["Signing"].full_name
FRAMES_AHEAD = 32
"""Frames of one stream that wait for their answers; more stay unread in the connection."""
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
        self.counters = Counters(profiles, signer.trace_every)
        self._open: tuple[Live, Lanes] | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._ending = False
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

    def end(self) -> None:
        """Takes no more frames, answers those it took, and ends streams and watches, so that
        their callers go to another signer and nobody is cut off."""
        self._ending = True
        for reader in self._readers:
            reader.cancel()
        if self._open is not None:
            self._open[0].end()

    async def Sign(self, request: SignRequest, context: Context) -> SignResponse:
        """Unary: what is refused as a whole, or alone in its frame, is the call's status."""
        self.counters.calls += 1
        left = context.time_remaining()
        if left is not None and left <= 0:  # under overload: nobody waits for it any more
            self.counters.refused("DEADLINE_PASSED", len(request.passports))
            raise late()
        frame = self._frame(request, self._peer(context))
        if len(frame.outcomes) == 1 and isinstance(frame.outcomes[0], KmsdError):
            raise frame.outcomes[0]
        signing = frame.start(NEVER if left is None else frame.arrived + left)
        if signing is not None:
            with suppress(KmsdError):  # `answer` tells
                await signing
        return frame.answer()

    async def SignStream(
        self, request_iterator: AsyncIterator[SignRequest], context: Context
    ) -> AsyncIterator[SignResponse]:
        """The same over one stream: a frame that is refused as a whole does not end it.

        Frames are answered as they are done, a refusal at once; of those that are not, up to
        FRAMES_AHEAD are read.
        """
        self._check_stays()
        peer = self._peer(context)
        answers: asyncio.Queue[Frame | SignResponse | None] = asyncio.Queue()
        room = asyncio.Semaphore(FRAMES_AHEAD)
        begun: set[Frame] = set()

        def begin(request: SignRequest) -> None:
            self.counters.frames += 1
            try:
                frame = self._frame(request, peer)
            except KmsdError as error:
                answers.put_nowait(_refused(request.sequence, error))
                return
            within = request.timeout_ms
            signing = frame.start(frame.arrived + within / 1000 if within else NEVER)
            if signing is None:
                answers.put_nowait(frame)
                return

            def signed(_: object) -> None:
                begun.discard(frame)
                answers.put_nowait(frame)

            begun.add(frame)
            signing.add_done_callback(signed)

        async def read() -> None:
            try:
                async for request in request_iterator:
                    await room.acquire()
                    begin(request)
            except asyncio.CancelledError:
                if not self._ending:
                    raise
            for _ in range(FRAMES_AHEAD):  # until everything is answered
                await room.acquire()

        reader = asyncio.create_task(read())
        reader.add_done_callback(lambda _: answers.put_nowait(None))
        self._readers.add(reader)
        self.counters.streams += 1
        try:
            while (answer := await answers.get()) is not None:
                yield _answered(answer) if isinstance(answer, Frame) else answer
                room.release()
        finally:
            self.counters.streams -= 1
            self._readers.discard(reader)
            reader.cancel()
            for frame in list(begun):  # of a caller who has gone
                frame.drop()
        await reader

    async def WatchCredentials(
        self, request: WatchCredentialsRequest, context: Context
    ) -> AsyncIterator[CredentialEvent]:
        """What the caller's profiles sign with and will sign with, `synced`, then every change."""
        self._check_stays()
        peer = self._peer(context)
        chosen = frozenset(request.profiles)
        live, _ = self._opened()
        for profile in chosen:
            peer.for_profile(profile)
            if profile not in self._profiles:  # one that is configured may become active
                live.key(profile)

        def concerns(profile: str) -> bool:
            return profile in chosen if chosen else peer.may_see(profile)

        async with aclosing(events(live, concerns)) as told:
            async for event in told:
                yield event
        self._check_stays()
        raise Exhausted("WATCHER_TOO_SLOW", "Changes were not read in time; watch again.")

    def _frame(self, request: SignRequest, peer: PeerGrants) -> Frame:
        """One frame under one epoch, not yet signed. Raises KmsdError when it is refused whole."""
        try:
            live, lanes = self._opened()
            grant = peer.for_profile(request.profile)
            key = live.key(request.profile)
            now = int(time.time())
            self._check(request, key.entry, now)
            lanes.admit()
        except KmsdError as error:
            self.counters.refused(error.reason, len(request.passports))
            raise
        frame = Frame(request.sequence, live.epoch, key, lanes, self.counters, peer.kind)
        for message in request.passports:
            try:
                frame.add(*self._draft(message, grant, now))
            except KmsdError as error:
                frame.refuse(error)
        return frame

    def _check_stays(self) -> None:
        if self._ending:
            raise Unavailable("SIGNER_STOPPING", "This signer is stopping.")

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


def _answered(frame: Frame) -> SignResponse:
    try:
        return frame.answer()
    except KmsdError as error:
        return _refused(frame.sequence, error)


def _refused(sequence: int, error: KmsdError) -> SignResponse:
    return SignResponse(sequence=sequence, refusal=refusal(error))
