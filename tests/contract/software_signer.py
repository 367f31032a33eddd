"""A Signing endpoint with software keys: small, written from the API and the RFCs alone.

It shares no code with kmsd, so that a client and a contract that hold here and there hold
because of the API. It obeys the switches in `Faults`, which a real signer would not.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from kmsapi.v1 import signing_pb2 as pb
from kmsapi.v1 import signing_pb2_grpc

from tests.contract.software_claims import INVALID, Refusal, base64url, claims_of, segment
from tests.contract.tls_parts import Parts

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Faults:
    """Switches. `next_calls` answer the next frames, one each: a refusal, or other bytes.

    `next_streams` end the next streams, each at its first frame. delay: seconds for each frame.
    """

    next_calls: list[Refusal | pb.SignResponse] = field(default_factory=list)
    next_streams: list[Refusal] = field(default_factory=list)
    delay: float = 0.0
    serving: bytes = b"\x08\x01"


@dataclass
class SoftwareSigner(signing_pb2_grpc.SigningServicer):
    """Signs for the profiles it has, for any caller.

    calls: frames that came, whichever way, and watches; frames: those of streams by their size.
    cancelled: of those that were at work, how many were cancelled. streams: that were begun.
    soon: what is announced at the start of a watch.
    """

    keys: dict[str, ec.EllipticCurvePrivateKey]
    faults: Faults = field(default_factory=Faults)
    frame_items: int = 256
    calls: int = 0
    cancelled: int = 0
    streams: int = 0
    frames: list[int] = field(default_factory=list)
    time_left: float = 0.0
    changes: list[asyncio.Queue[pb.CredentialEvent]] = field(default_factory=list)
    soon: dict[str, pb.CredentialEvent] = field(default_factory=dict)

    async def Sign(self, request: pb.SignRequest, context: Context) -> pb.SignResponse:
        """One frame."""
        self.time_left = context.time_remaining()
        try:
            response = await self._answer(request)
        except Refusal as refusal:
            await self._abort(context, refusal)
        if len(response.results) == 1 and response.results[0].HasField("refusal"):
            said = response.results[0].refusal
            code = next(c for c in grpc.StatusCode if c.value[0] == said.code)
            await self._abort(context, Refusal(code, said.reason, said.message, said.metadata))
        return response

    async def SignStream(
        self, request_iterator: AsyncIterator[pb.SignRequest], context: Context
    ) -> AsyncIterator[pb.SignResponse]:
        """Frame after frame."""
        self.streams += 1
        async for request in request_iterator:
            self.frames.append(len(request.passports))
            if self.faults.next_streams:
                await self._abort(context, self.faults.next_streams.pop(0))
            try:
                yield await self._answer(request)
            except Refusal as refusal:
                yield pb.SignResponse(sequence=request.sequence, refusal=_message(refusal))

    async def WatchCredentials(
        self, request: pb.WatchCredentialsRequest, context: Context
    ) -> AsyncIterator[pb.CredentialEvent]:
        """Snapshot, synced, then whatever the test puts into `changes`."""
        self.calls += 1
        if self.faults.next_calls and isinstance(fault := self.faults.next_calls.pop(0), Refusal):
            await self._abort(context, fault)
        for name in request.profiles:
            if name not in self.keys:
                await self._abort(context, _unknown(name))
        queue: asyncio.Queue[pb.CredentialEvent] = asyncio.Queue()
        self.changes.append(queue)
        for name in request.profiles or sorted(self.keys):
            yield self.event(name)
        for event in self.soon.values():
            yield event
        yield pb.CredentialEvent(epoch=1, synced=pb.Synced())
        while True:
            yield await queue.get()

    def event(self, profile: str) -> pb.CredentialEvent:
        """What the profile signs with."""
        active = pb.ActiveCredential(
            profile=profile,
            spc="1234",
            credential=self.spki_sha256(profile)[:16],
            x5u=self.x5u(profile),
            spki_sha256=self.spki_sha256(profile),
            not_before=int(time.time()) - 60,
            not_after=int(time.time()) // 86400 * 86400 + 864000,
        )
        return pb.CredentialEvent(epoch=1, active=active)

    def x5u(self, profile: str) -> str:
        """Where the chain would be."""
        return f"https://cr.example.net/{profile}.pem"

    def spki_sha256(self, profile: str) -> str:
        """Hash of the public key."""
        spki = (
            self.keys[profile]
            .public_key()
            .public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return hashlib.sha256(spki).hexdigest()

    async def public_key(self, x5u: str) -> ec.EllipticCurvePublicKey:
        """The key behind an x5u."""
        [profile] = [name for name in self.keys if self.x5u(name) == x5u]
        return self.keys[profile].public_key()

    async def _answer(self, request: pb.SignRequest) -> pb.SignResponse:
        self.calls += 1
        try:
            await asyncio.sleep(self.faults.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.faults.next_calls:
            fault = self.faults.next_calls.pop(0)
            if isinstance(fault, Refusal):
                raise fault
            return fault
        return self._frame(request)

    async def _abort(self, context: Context, refusal: Refusal) -> NoReturn:
        trailing: tuple[tuple[str, bytes], ...] = ()
        if refusal.reason:
            status = Status(code=refusal.code.value[0], message=refusal.message)
            info = ErrorInfo(
                reason=refusal.reason, domain=refusal.domain, metadata=refusal.metadata
            )
            delay = Duration(seconds=int(refusal.retry_after), nanos=500_000_000)
            for detail in [info, *([RetryInfo(retry_delay=delay)] * (refusal.retry_after > 0))]:
                packed = AnyMessage()
                packed.Pack(detail)
                status.details.append(packed)
            trailing = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(refusal.code, refusal.message, trailing)
        raise AssertionError("abort returned")

    def _frame(self, request: pb.SignRequest) -> pb.SignResponse:
        if request.profile not in self.keys:
            raise _unknown(request.profile)
        if not 0 < len(request.passports) <= self.frame_items:
            limit = {"limit": str(self.frame_items)}
            raise Refusal(INVALID, "FRAME_TOO_LARGE", "A frame holds fewer PASSporTs.", limit)
        response = pb.SignResponse(sequence=request.sequence, epoch=1)
        for passport in request.passports:
            try:
                response.results.add().signed.CopyFrom(self._signed(request.profile, passport))
            except Refusal as refusal:
                response.results[-1].refusal.CopyFrom(_message(refusal))
        return response

    def _signed(self, profile: str, passport: pb.Passport) -> pb.Signed:
        claims, ppt = claims_of(passport)
        header = {"alg": "ES256", "typ": "passport", "x5u": self.x5u(profile)}
        token = f"{segment(header | ({'ppt': ppt} if ppt else {}))}.{segment(claims)}"
        der = self.keys[profile].sign(token.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        signature = base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        suffix = f";ppt={ppt}" if ppt else ""
        identity = f"{token}.{signature};info=<{self.x5u(profile)}>;alg=ES256{suffix}"
        return pb.Signed(identity=identity, origid=str(claims.get("origid", "")))


@asynccontextmanager
async def served(
    signer: SoftwareSigner, parts: Parts, port: int = 0
) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """Serves over mutual TLS on loopback; gives target and server."""

    async def check(request: bytes, context: Context) -> bytes:
        return signer.faults.serving

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    signing_pb2_grpc.add_SigningServicer_to_server(signer, server)
    health: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Check": grpc.unary_unary_rpc_method_handler(check)
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("grpc.health.v1.Health", health)]
    )
    credentials = grpc.ssl_server_credentials(
        [(parts.server_key, parts.server_certificate)], parts.ca, require_client_auth=True
    )
    bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{bound}", server
    finally:
        await server.stop(None)


def _unknown(profile: str) -> Refusal:
    message = f"No profile {profile!r} is here."
    return Refusal(grpc.StatusCode.NOT_FOUND, "PROFILE_UNKNOWN", message, {"profile": profile})


def _message(refusal: Refusal) -> pb.Refusal:
    wait = {"retry_after_seconds": str(refusal.retry_after + 0.5)} if refusal.retry_after else {}
    return pb.Refusal(
        code=refusal.code.value[0],
        reason=refusal.reason,
        message=refusal.message,
        metadata={**refusal.metadata, **wait},
    )


def signer_for(profiles: Sequence[str]) -> SoftwareSigner:
    """A signer with a fresh key for each profile."""
    return SoftwareSigner({name: ec.generate_private_key(ec.SECP256R1()) for name in profiles})
