"""A small STI-CA over real HTTPS that checks what it gets and answers as badly as it is told.

It knows one order, one authorization, one certificate. It shares no code with the client:
signatures, nonces and headers are checked here from RFC 8555 section 6.
"""

import asyncio
import base64
import hashlib
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from tests.pebble import HttpsIdentity

URN = "urn:ietf:params:acme:error:"
PEM = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"


@dataclass
class Reply:
    """What goes back. pause: seconds before each octet of the body. nonce: send a fresh one."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    nonce: bool = True
    pause: float = 0.0
    breaks_off: bool = False


@dataclass
class Request:
    """A request that passed the checks. payload: None for a POST-as-GET."""

    method: str
    headers: dict[str, str]
    protected: dict[str, Any]
    payload: Any


class HostileCa:
    """The server. Change its members to change how it behaves; `seen` is what was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[tuple[str, Request]] = []
        self.faults: dict[str, list[Reply]] = defaultdict(list)
        self.directory_meta: dict[str, Any] = {}
        self.signs_last_dot = True
        self.head_allowed = True
        self.account_status = "valid"
        self.account_body_empty = False
        self.order: dict[str, Any] = {"status": "pending", "expires": "2030-01-01T00:00:00Z"}
        self.challenge: dict[str, Any] = {
            "type": "tkauth-01",
            "tkauth-type": "atc",
            "token-authority": "https://authority.example/",
            "status": "pending",
            "somethingNew": {"nobody": ["knows"]},
        }
        self.authorization_status = "pending"
        self.renewal: Reply | None = None
        self.chain = Reply(200, PEM.encode(), {"content-type": "application/pem-certificate-chain"})
        self.after_answer: list[Callable[[], None]] = [self.authorize]
        self._nonces: set[str] = set()
        self._counter = 0
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}

    def url(self, resource: str) -> str:
        return f"https://127.0.0.1:{self.port}/{resource}"

    def fails(self, resource: str, *replies: Reply) -> None:
        """The next requests for `resource` get these replies."""
        self.faults[resource] += replies

    def asked(self, resource: str) -> list[Request]:
        return [request for name, request in self.seen if name == resource]

    def authorize(self) -> None:
        self.challenge["status"] = self.authorization_status = "valid"
        self.order["status"] = "ready"

    def reject(self, document: dict[str, Any]) -> None:
        """The SPC token was no good."""
        self.challenge |= {"status": "invalid", "error": document}
        self.authorization_status = "invalid"
        self.order["status"] = "invalid"

    def issue(self, **members: Any) -> None:
        self.order |= {"status": "valid", "certificate": self.url("certificate")} | members

    @asynccontextmanager
    async def running(self, identity: HttpsIdentity) -> AsyncIterator["HostileCa"]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.certificate, identity.key)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            reply = self._answer(method, path.strip("/"), headers, body)
            await self._send(writer, method, reply)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left, as it should when it has had enough
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, method: str, reply: Reply) -> None:
        if reply.breaks_off:
            return
        headers = {"content-length": str(len(reply.body)), "connection": "close"} | reply.headers
        if reply.nonce:
            headers["replay-nonce"] = self._fresh_nonce()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode())
        pieces: Iterable[bytes] = [reply.body]
        if reply.pause:
            pieces = (reply.body[i : i + 1] for i in range(len(reply.body)))
        for piece in pieces if method != "HEAD" else ():
            await asyncio.sleep(reply.pause)
            writer.write(piece)
            await writer.drain()

    def _answer(self, method: str, resource: str, headers: dict[str, str], body: bytes) -> Reply:
        request = Request(method, headers, {}, None)
        if method == "POST":
            refusal = self._check(resource, request, json.loads(body))
            if refusal is not None:
                return refusal
        self.seen.append((resource, request))
        if self.faults[resource]:
            return self.faults[resource].pop(0)
        return self._resource(resource, request)

    def _resource(self, resource: str, request: Request) -> Reply:
        match resource:
            case "directory":
                names = ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")
                directory = {name: self.url(name) for name in names}
                if self.renewal is not None:
                    directory["renewalInfo"] = self.url("renewalInfo")
                reply = told(directory | {"meta": self.directory_meta, "newAuthz": None})
                reply.nonce = False
                return reply
            case "newNonce" if request.method == "HEAD" and not self.head_allowed:
                return Reply(405, nonce=False)
            case "newNonce":
                return Reply(200 if request.method == "HEAD" else 204)
            case "newAccount":
                body = b"" if self.account_body_empty else self._account()
                return Reply(201, body, {"location": self.url("account")})
            case "account":
                return Reply(200, self._account())
            case "newOrder":
                return told(self._order(), 201, location=self.url("order"))
            case "order":
                return told(self._order())
            case "authorization":
                challenges = [
                    {"type": "http-99", "url": self.url("other")},
                    self.challenge | {"url": self.url("challenge")},
                ]
                return told({"status": self.authorization_status, "challenges": challenges})
            case "challenge":
                if self.after_answer:
                    self.after_answer.pop(0)()
                return told(self.challenge | {"url": self.url("challenge")})
            case _ if resource.startswith("renewalInfo/") and self.renewal is not None:
                return self.renewal
            case "finalize":
                self.issue()
                return told(self._order())
            case "certificate":
                return self.chain
            case _:
                return Reply(404)

    def _account(self) -> bytes:
        return json.dumps({"status": self.account_status, "orders": 7}).encode()

    def _order(self) -> dict[str, Any]:
        return {
            "authorizations": [self.url("authorization")],
            "finalize": self.url("finalize"),
            "error": None,
        } | self.order

    def _check(self, resource: str, request: Request, jws: dict[str, str]) -> Reply | None:
        assert request.headers["content-type"] == "application/jose+json"
        assert request.headers["user-agent"].startswith("kmsd/")
        assert set(jws) == {"protected", "payload", "signature"}
        protected = request.protected = json.loads(decode(jws["protected"]))
        assert ("jwk" in protected) != ("kid" in protected)
        assert protected["alg"] == "ES256"
        assert protected["url"] == self.url(resource)
        if protected["nonce"] not in self._nonces:
            return told({"type": URN + "badNonce"}, 400)
        self._nonces.remove(protected["nonce"])
        if "jwk" in protected:
            self._keys[self.url("account")] = public_key(protected["jwk"])
        key = self._keys[protected.get("kid", self.url("account"))]
        signed = f"{jws['protected']}.{jws['payload']}"
        if not jws["payload"] and not self.signs_last_dot:
            signed = jws["protected"]
        signature = decode(jws["signature"])
        assert len(signature) == 64
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        key.verify(encode_dss_signature(r, s), signed.encode(), ec.ECDSA(SHA256()))
        request.payload = json.loads(decode(jws["payload"])) if jws["payload"] else None
        return None

    def _fresh_nonce(self) -> str:
        self._counter += 1
        nonce = hashlib.sha256(str(self._counter).encode()).hexdigest()
        self._nonces.add(nonce)
        return nonce


def told(members: dict[str, Any], status: int = 200, **headers: str) -> Reply:
    """A JSON reply; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(members).encode(), named)


def problem(kind: str, status: int = 400, detail: str = "", **headers: str) -> Reply:
    """A problem document."""
    return told({"type": URN + kind, "detail": detail, "status": status}, status, **headers)


def decode(text: str) -> bytes:
    assert "=" not in text
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def public_key(jwk: dict[str, str]) -> ec.EllipticCurvePublicKey:
    x, y = (int.from_bytes(decode(jwk[name]), "big") for name in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
