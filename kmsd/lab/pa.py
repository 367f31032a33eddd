"""The STI-PA: login, SPC tokens, the list of trusted STI-CAs, the CRL, its certificates.

The API is the one the field's code speaks (PROTOCOL 2.2), the token RFC 9447 section 4 and
RFC 9448 section 5.4. What it signs, it signs as asked: an STI-PA does not know account keys,
so comparing fingerprints is the STI-CA's duty (RFC 9447 section 3.3).
"""

import base64
import hmac
import json
import re
import secrets
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kmsd.lab import crl, jws, pki, tnauth
from kmsd.lab.pki import Identity
from kmsd.lab.world import World

_TOKEN_SIGNER = 1
_SIGNERS = {
    _TOKEN_SIGNER: "pa_signer",
    crl.CRL_SIGNER: "pa_crl",
    crl.FOREIGN_SIGNER: "foreign_pa",
}
_FINGERPRINT = re.compile(r"SHA256 [0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}")
_LARGEST_BODY = 64 * 1024
_JOSE = "application/jose+json"


class PolicyAdministrator:
    """The STI-PA under `/pa`. routes: for the application."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sessions: dict[str, float] = {}
        self._last_jti = str(uuid.uuid4())
        token = self._token
        self.routes = [
            Route("/pa/api/v1/auth/login", self._login, methods=["POST"]),
            Route("/pa/api/v1/auth/logout", self._logout, methods=["POST"]),
            Route("/pa/api/v1/account/{account}/token", token, methods=["POST"]),
            Route("/pa/api/v1/account/{account}/token/", token, methods=["POST"]),
            Route("/pa/api/v1/ca-list", self._ca_list, methods=["GET"]),
            Route("/pa/download/v1/crl", self._crl, methods=["GET"]),
            Route(
                "/pa/download/v1/certificate/certificateId_{number:int}.crt",
                self._certificate,
                methods=["GET"],
            ),
        ]

    def published(self, url: str) -> tuple[Any, ...] | None:
        """The chain this STI-PA serves at `url`, signer first; None when there is none."""
        for number, name in _SIGNERS.items():
            if url == self._world.urls.pa_certificate(number):
                return self._identity(name).chain()
        return None

    async def _login(self, request: Request) -> Response:
        try:
            body = await _object(request)
        except _Refusal as refusal:
            return self._refuse(refusal)
        subscriber = self._world.subscriber
        user, password = body.get("userId"), body.get("password")
        if not isinstance(user, str) or not isinstance(password, str):
            return self._refuse(_Refusal(400, "PA400", "userId and password are texts"))
        # Both are compared always: which of the two was wrong is not to be learnt by the clock.
        right = [_same(user, subscriber.user), _same(password, subscriber.password)]
        if not all(right):
            return self._refuse(_Refusal(403, "PA403", "unknown user or wrong password"))
        access = secrets.token_urlsafe(24)
        self._sessions[access] = self._world.now() + self._world.switches.session_seconds
        return self._reply(
            {"status": "success", "message": "You are signed in.", "accessToken": access}
        )

    async def _logout(self, request: Request) -> Response:
        try:
            self._authorize(request)
        except _Refusal as refusal:
            return self._refuse(refusal)
        for access in _credentials(request.headers.get("authorization", "")):
            self._sessions.pop(access, None)
        return self._reply({"status": "success", "message": "You are signed out."})

    async def _token(self, request: Request) -> Response:
        try:
            self._authorize(request)
            account = request.path_params["account"]
            if account not in self._world.subscriber.spcs:
                raise _Refusal(404, "PA404", f"there is no account {account}")
            asked = self._asked(await _object(request))
            spc = tnauth.read_spc(tnauth.read_text(asked["tkvalue"], "either"))
            if spc != account:
                raise _Refusal(403, "PA403", f"SPC {spc} does not belong to account {account}")
        except _Refusal as refusal:
            return self._refuse(refusal)
        except ValueError as error:
            return self._refuse(_Refusal(400, "PA400", f"tkvalue: {error}"))
        match self._world.switches.token:
            case "refused":
                return self._refuse(_Refusal(403, "PA403", f"SPC {spc} is suspended"))
            case "soft_refused":
                return self._reply({"status": "failure", "message": f"SPC {spc} is suspended"})
        self._world.book.tokens += 1
        body = {
            "status": "success",
            "message": f"SPC token for spc: {spc} is created successfully",
            "token": self._make_token(asked),
            "crl": self._world.urls.crl,
            "iss": pki.CRL_ISSUER.rfc4514_string(),
        }
        accepts_jose = _JOSE in request.headers.get("accept", "")
        return self._reply(body, media=_JOSE if accepts_jose else "application/json")

    def _asked(self, body: dict[str, Any]) -> dict[str, Any]:
        """The four members of the request, checked; RFC 9447 wraps them in `atc`."""
        form = self._world.switches.pa_body
        wrapped = "atc" in body
        if (form == "atc" and not wrapped) or (form == "bare" and wrapped):
            raise _Refusal(400, "PA400", f"the request's form is {form!r} here")
        asked = body["atc"] if wrapped else body
        if not isinstance(asked, dict):
            raise _Refusal(400, "PA400", "atc is an object")
        if asked.get("tktype") != "TNAuthList":  # case counts, RFC 9448 section 5.4
            raise _Refusal(400, "PA400", "tktype is TNAuthList")
        if not isinstance(asked.get("tkvalue"), str):
            raise _Refusal(400, "PA400", "tkvalue is a text")
        if not isinstance(asked.get("ca", False), bool):
            raise _Refusal(400, "PA400", "ca is a boolean")
        if not _FINGERPRINT.fullmatch(str(asked.get("fingerprint"))):
            raise _Refusal(400, "PA400", "fingerprint is SHA256 and 32 hex pairs with colons")
        return {
            "tktype": "TNAuthList",
            "tkvalue": asked["tkvalue"],
            "ca": asked.get("ca", False),
            "fingerprint": asked["fingerprint"],
        }

    def _make_token(self, atc: dict[str, Any]) -> str:
        """A compact JWS over exp, jti and atc; the switch `token` breaks one thing in it."""
        world = self._world
        signer, number = world.pki.pa_signer, _TOKEN_SIGNER
        payload: dict[str, Any] = {
            "exp": int(world.now()) + world.switches.token_seconds,
            "jti": str(uuid.uuid4()),
            "atc": atc,
        }
        x5u = world.urls.pa_certificate(number)
        match world.switches.token:
            case "garbage":
                return "this is no token"
            case "foreign":
                signer = world.pki.foreign_pa
                x5u = world.urls.pa_certificate(crl.FOREIGN_SIGNER)
            case "http_x5u":
                x5u = x5u.replace("https://", "http://")
            case "no_jti":
                del payload["jti"]
            case "reused_jti":
                payload["jti"] = self._last_jti
            case "tktype":
                atc["tktype"] = "TnAuthList"
            case "tkvalue":
                atc["tkvalue"] = jws.encode(tnauth.encode_spc("0000"))
            case "ca":
                atc["ca"] = not atc["ca"]
            case "expired":
                payload["exp"] = int(world.now()) - 1
            case "fingerprint":
                atc["fingerprint"] = "SHA256 " + ":".join(["00"] * 32)
        self._last_jti = payload.get("jti", self._last_jti)
        token = jws.compact(signer.key, {"alg": "ES256", "typ": "JWT", "x5u": x5u}, payload)
        return _spoiled(token) if world.switches.token == "signature" else token  # noqa: S105

    async def _ca_list(self, request: Request) -> Response:
        world = self._world
        if world.switches.pa_list_needs_login:
            try:
                self._authorize(request)
            except _Refusal as refusal:
                return self._refuse(refusal)
        fault = world.switches.ca_list
        signer, number = world.pki.pa_signer, _TOKEN_SIGNER
        if fault == "foreign":
            signer, number = world.pki.foreign_pa, crl.FOREIGN_SIGNER
        lifetime = -60 if fault == "expired" else world.switches.list_seconds
        trusted = [pki.pem([world.pki.ca_root.certificate]).decode("ascii")]
        payload = {
            "version": "1.0",
            "sequence": 1 if fault == "lower_sequence" else world.started,
            "exp": int(world.now()) + lifetime,
            "trustList": [] if fault == "empty" else trusted,
        }
        header = {"alg": "ES256", "typ": "JWT", "x5u": world.urls.pa_certificate(number)}
        signed = jws.compact(signer.key, header, payload)
        if fault == "signature":
            signed = _spoiled(signed)
        return self._reply(
            {"status": "success", "caList": "garbage" if fault == "garbage" else signed},
            media=_JOSE,
        )

    async def _crl(self, request: Request) -> Response:
        body = crl.certificate_revocation_list(self._world)
        return Response(body, media_type="application/pkix-crl")

    async def _certificate(self, request: Request) -> Response:
        name = _SIGNERS.get(request.path_params["number"])
        if name is None:
            return self._refuse(_Refusal(404, "PA404", "there is no such certificate"))
        return Response(pki.pem(self._identity(name).chain()), media_type="application/pkix-cert")

    def _identity(self, name: str) -> Identity:
        identity: Identity = getattr(self._world.pki, name)
        return identity

    def _authorize(self, request: Request) -> None:
        """Raises _Refusal unless the Authorization header opens this subscriber's account."""
        given = request.headers.get("authorization", "")
        scheme, _, rest = given.partition(" ")
        match self._world.switches.pa_authorization:
            case "basic":
                subscriber = self._world.subscriber
                pair = f"{subscriber.user}:{subscriber.password}".encode()
                right = scheme.lower() == "basic" and _same(
                    rest, base64.b64encode(pair).decode("ascii")
                )
            case "bearer":
                right = scheme.lower() == "bearer" and self._open(rest)
            case _:
                right = self._open(given)
        if not right:
            raise _Refusal(403, "PA403", "the session is unknown or over: log in")

    def _open(self, access: str) -> bool:
        return self._sessions.get(access, 0.0) > self._world.now()

    def _refuse(self, refusal: "_Refusal") -> Response:
        body = {"status": "error", "code": refusal.code, "message": refusal.message}
        return self._reply(body, status=refusal.status)

    def _reply(
        self, body: dict[str, Any], *, status: int = 200, media: str = "application/json"
    ) -> Response:
        noisy = self._world.dice.stir(body) if self._world.switches.noise else body
        return Response(json.dumps(noisy), status_code=status, media_type=media)


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


async def _object(request: Request) -> dict[str, Any]:
    """The JSON object in the body. Raises _Refusal."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise _Refusal(415, "PA415", "Content-Type is application/json")
    body = await request.body()
    if len(body) > _LARGEST_BODY:
        raise _Refusal(413, "PA413", "the request is too large")
    try:
        return jws.parse_object(body)
    except ValueError as error:
        raise _Refusal(400, "PA400", "the body is no JSON object") from error


def _credentials(authorization: str) -> list[str]:
    return [authorization, authorization.partition(" ")[2]]


def _same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(errors="replace"), right.encode())


def _spoiled(token: str) -> str:
    """The same token with one bit of its signature flipped."""
    head, body, signature = token.split(".")
    raw = bytearray(jws.decode(signature))
    raw[10] ^= 1
    return f"{head}.{body}.{jws.encode(bytes(raw))}"
