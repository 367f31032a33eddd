"""The STI-CA as an application: directory, nonces, and the way of a POST to its handler.

What each resource does is in `accounts`, `orders` and `renewal`; whether a request counts at
all is in `signed`. Replies carry what RFC 8555 wants on all of them: a nonce, the index link.
"""

import json
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kmsd.lab import accounts, orders, renewal
from kmsd.lab.checks import Published
from kmsd.lab.problem import Problem
from kmsd.lab.reply import Reply
from kmsd.lab.signed import LARGEST_BODY, Signed, authenticate
from kmsd.lab.world import World


class CertificateAuthority:
    """The STI-CA under `/ca`. routes: for the application."""

    def __init__(self, world: World, published: Published) -> None:
        """published: looks up chains at the STI-PA's URLs (of SPC tokens' x5u)."""
        self._world = world

        def challenge(world: World, signed: Signed, name: str) -> Reply:
            return orders.challenge(world, signed, name, published)

        self.routes = [
            Route("/ca/directory", self._directory, methods=["GET"]),
            Route("/ca/new-nonce", self._new_nonce, methods=["GET", "HEAD"]),
            Route("/ca/renewal-info/{name}", self._renewal_info, methods=["GET"]),
            self._post("/ca/new-account", lambda w, s, _: accounts.new_account(w, s)),
            self._post("/ca/account/{name}", accounts.account),
            self._post("/ca/account/{name}/orders", accounts.account_orders),
            self._post("/ca/key-change", lambda w, s, _: accounts.key_change(w, s)),
            self._post("/ca/new-order", lambda w, s, _: orders.new_order(w, s)),
            self._post("/ca/order/{name}", orders.order),
            self._post("/ca/order/{name}/finalize", orders.finalize),
            self._post("/ca/authorization/{name}", orders.authorization),
            self._post("/ca/challenge/{name}", challenge),
            self._post("/ca/certificate/{name}", orders.certificate),
            self._post("/ca/revoke-cert", lambda w, s, _: renewal.revoke_certificate(w, s)),
        ]

    async def _directory(self, request: Request) -> Response:
        ca, switches = self._world.urls.ca, self._world.switches
        body = {
            "newNonce": f"{ca}/new-nonce",
            "newAccount": f"{ca}/new-account",
            "newOrder": f"{ca}/new-order",
            "revokeCert": f"{ca}/revoke-cert",
            "keyChange": f"{ca}/key-change",
            "meta": {
                "termsOfService": f"{ca}/terms",
                "website": f"{ca}/",
                "externalAccountRequired": switches.eab == "required",
            },
        }
        if switches.ari:
            body["renewalInfo"] = f"{ca}/renewal-info"
        return self._respond(Reply(body))

    async def _new_nonce(self, request: Request) -> Response:
        """200 for HEAD, 204 for GET (section 7.2)."""
        return self._respond(Reply(b"", status=200 if request.method == "HEAD" else 204))

    async def _renewal_info(self, request: Request) -> Response:
        try:
            return self._respond(renewal.renewal_info(self._world, request.path_params["name"]))
        except Problem as problem:
            return self._refuse(problem)

    def _post(self, path: str, handler: Callable[[World, Signed, str], Reply]) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return self._respond(handler(self._world, *await self._signed(request)))
            except Problem as problem:
                return self._refuse(problem)

        return Route(path, endpoint, methods=["POST"])

    async def _signed(self, request: Request) -> tuple[Signed, str]:
        if not request.headers.get("user-agent"):
            raise Problem("malformed", "A client names itself in User-Agent (section 6.1).")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                raise Problem("malformed", "The request is too large.", status=413)
        query = f"?{request.url.query}" if request.url.query else ""
        url = f"{self._world.urls.base}{request.url.path}{query}"
        media_type = request.headers.get("content-type", "")
        signed = authenticate(self._world, url, media_type, body)
        return signed, request.path_params.get("name", "")

    def _refuse(self, problem: Problem) -> Response:
        return self._respond(
            Reply(
                problem.document(),
                status=problem.status,
                media_type="application/problem+json",
                headers=problem.headers,
            )
        )

    def _respond(self, reply: Reply) -> Response:
        world = self._world
        headers = {
            "Replay-Nonce": world.book.new_nonce(),
            "Cache-Control": "no-store",
        } | reply.headers
        if isinstance(reply.body, bytes):
            media_type = reply.media_type if reply.body else None
            content = reply.body
        else:
            body = world.dice.stir(reply.body) if world.switches.noise else reply.body
            media_type, content = reply.media_type, json.dumps(body).encode()
        response = Response(content, reply.status, headers, media_type)
        response.headers.append("Link", f'<{world.urls.ca}/directory>;rel="index"')
        return response
