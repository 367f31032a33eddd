"""A Signing endpoint with software keys: small, written from the API and the RFCs alone.

It shares no code with kmsd, so that a client and a contract that hold here and there hold
because of the API. It obeys the switches in `Faults`, which a real signer would not.
"""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn
from uuid import UUID, uuid4

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

from tests.contract.tls_parts import Parts

Context = grpc.aio.ServicerContext[Any, Any]
FRAME_ITEMS = 256
FRESHNESS = 60
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@dataclass
class Refusal(Exception):
    """What this signer says no with."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float = 0.0
    domain: str = "kmsd"


@dataclass
class Faults:
    """Switches. `next_calls` answer the next calls, one each: a refusal, or other bytes."""

    next_calls: list[Refusal | pb.SignResponse] = field(default_factory=list)
    delay: float = 0.0
    serving: bytes = b"\x08\x01"


@dataclass
class SoftwareSigner(signing_pb2_grpc.SigningServicer):
    """Signs for the profiles it has, for any caller."""

    keys: dict[str, ec.EllipticCurvePrivateKey]
    faults: Faults = field(default_factory=Faults)
    calls: int = 0
    cancelled: int = 0
    time_left: float = 0.0
    changes: list[asyncio.Queue[pb.CredentialEvent]] = field(default_factory=list)

    async def Sign(self, request: pb.SignRequest, context: Context) -> pb.SignResponse:
        """One frame."""
        self.calls += 1
        self.time_left = context.time_remaining()
        try:
            await asyncio.sleep(self.faults.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        try:
            if self.faults.next_calls:
                fault = self.faults.next_calls.pop(0)
                if isinstance(fault, pb.SignResponse):
                    return fault
                raise fault
            response = self._frame(request)
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
        async for request in request_iterator:
            try:
                yield self._frame(request)
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
        if not 0 < len(request.passports) <= FRAME_ITEMS:
            limit = {"limit": str(FRAME_ITEMS)}
            raise Refusal(INVALID, "FRAME_SIZE", "A frame holds 1 to 256 PASSporTs.", limit)
        response = pb.SignResponse(sequence=request.sequence, epoch=1)
        for passport in request.passports:
            try:
                response.results.add().signed.CopyFrom(self._signed(request.profile, passport))
            except Refusal as refusal:
                response.results[-1].refusal.CopyFrom(_message(refusal))
        return response

    def _signed(self, profile: str, passport: pb.Passport) -> pb.Signed:
        claims, ppt = _claims(passport)
        header = {"alg": "ES256", "typ": "passport", "x5u": self.x5u(profile)}
        token = f"{_segment(header | ({'ppt': ppt} if ppt else {}))}.{_segment(claims)}"
        der = self.keys[profile].sign(token.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        signature = _base64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
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


def _claims(passport: pb.Passport) -> tuple[dict[str, Any], str]:
    now, kind = int(time.time()), passport.WhichOneof("type")
    if kind is None:
        raise Refusal(INVALID, "TYPE_MISSING", "A PASSporT needs a type.", {"field": "type"})
    iat = passport.iat or now
    if kind != "div" and abs(iat - now) > FRESHNESS:
        raise Refusal(INVALID, "IAT_NOT_FRESH", "The iat is not fresh.", {"field": "iat"})
    dest = {"tn": [_tn("dest", tn) for tn in passport.dest_tn], "uri": list(passport.dest_uri)}
    if not any(dest.values()):
        raise Refusal(INVALID, "DEST_MISSING", "There is no dest.", {"field": "dest"})
    claims: dict[str, Any] = {"dest": {k: v for k, v in dest.items() if v}, "iat": iat}
    match passport.WhichOneof("orig"):
        case "orig_tn":
            claims["orig"] = {"tn": _tn("orig", passport.orig_tn)}
        case "orig_uri":
            claims["orig"] = {"uri": passport.orig_uri}
        case None:
            raise Refusal(INVALID, "ORIG_MISSING", "There is no orig.", {"field": "orig"})
    match kind:
        case "shaken":
            if passport.shaken.attest not in (1, 2, 3):
                raise Refusal(
                    INVALID, "ATTEST_UNKNOWN", "attest is A, B or C.", {"field": "attest"}
                )
            claims["attest"] = "-ABC"[passport.shaken.attest]
            claims["origid"] = _origid(passport.shaken.origid)
        case "div":
            claims["div"] = {"tn": _tn("div", passport.div.tn)}
        case "rph":
            claims["rph"] = {"auth": list(passport.rph.auth)}
        case "rcd":
            rcd = passport.rcd
            names = ("nam", "apn", "icn", "jcl")
            claims["rcd"] = {n: getattr(rcd, n) for n in names if getattr(rcd, n)}
            if not claims["rcd"]:
                raise Refusal(INVALID, "RCD_EMPTY", "There is nothing in rcd.", {"field": "rcd"})
    return claims, "" if kind == "base" else kind


def _tn(name: str, text: str) -> str:
    digits = re.sub(r"[-. ()]|^\+", "", text)
    if not re.fullmatch(r"[1-9][0-9]{1,14}", digits):
        raise Refusal(INVALID, "TN_INVALID", f"The {name} is no number.", {"field": name})
    return digits


def _origid(text: str) -> str:
    try:
        return str(UUID(text)) if text else str(uuid4())
    except ValueError:
        raise Refusal(INVALID, "ORIGID_INVALID", "No UUID.", {"field": "origid"}) from None


def _unknown(profile: str) -> Refusal:
    message = f"No profile {profile!r} is here."
    return Refusal(grpc.StatusCode.NOT_FOUND, "PROFILE_UNKNOWN", message, {"profile": profile})


def _message(refusal: Refusal) -> pb.Refusal:
    return pb.Refusal(
        code=refusal.code.value[0],
        reason=refusal.reason,
        message=refusal.message,
        metadata=refusal.metadata,
    )


def _segment(claims: dict[str, Any]) -> str:
    return _base64(
        json.dumps(claims, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signer_for(profiles: Sequence[str]) -> SoftwareSigner:
    """A signer with a fresh key for each profile."""
    return SoftwareSigner({name: ec.generate_private_key(ec.SECP256R1()) for name in profiles})
