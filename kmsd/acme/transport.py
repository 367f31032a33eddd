"""Requests to one ACME server: its directory, nonces, signatures, errors (RFC 8555 section 6).

Knows nothing of accounts or orders. HTTPS only, no redirects, no compression; a proxy is taken
from the environment, as HTTPS_PROXY has it. Each exchange has one deadline and a bounded answer.
A rejected nonce is an everyday thing and repeated here within a budget; nothing else ever is.
"""

import asyncio
import re
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import httpx
import msgspec

from kmsd import __version__, jose
from kmsd.acme import problems
from kmsd.acme.messages import Directory
from kmsd.acme.nonces import Nonces
from kmsd.acme.signing import Signer, header
from kmsd.errors import Misconfigured, Unavailable
from kmsd.retryafter import retry_after
from kmsd.settings import Issuer

NONCE_BUDGET = 10
"""Times one request is sent anew because its nonce was rejected."""
BODY_LIMIT = 262_144
"""Octets of an answer that are read, at most."""
JOSE_JSON = "application/jose+json"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful reply. resource: the RFC's word for what was asked, for errors."""

    resource: str
    issuer: str
    status: int
    headers: httpx.Headers
    body: bytes

    def parse(self, wanted: type[T]) -> T:
        """The body as a message. Raises PeerRefused (ACME_ANSWER_MALFORMED)."""
        try:
            return msgspec.json.decode(self.body, type=wanted)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            what = f"with something else than it should ({problems.printable(str(error))})"
            raise problems.malformed(self.issuer, self.resource, what, self.body) from error

    def location(self) -> str:
        """The https URL in the Location header. Raises PeerRefused (ACME_ANSWER_MALFORMED)."""
        return https(self.headers.get("location", ""), self.resource, self.issuer)

    def retry_after(self) -> float | None:
        """Seconds the server asks to wait before the next look; None when it does not say."""
        return retry_after(self.headers, time.time())


class Transport:
    """One ACME server. `http` replaces the network in tests."""

    def __init__(
        self, name: str, issuer: Issuer, http: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Raises Misconfigured (ACME_DIRECTORY_NOT_HTTPS, TLS_CA_UNREADABLE, RULES_INVALID)."""
        if not is_https(issuer.directory):
            raise Misconfigured(
                "ACME_DIRECTORY_NOT_HTTPS",
                f"The directory of STI-CA {name} is no https URL: {issuer.directory!r}.",
                next_step="Correct `directory` of this issuer.",
                issuer=name,
            )
        self.name = name
        self._issuer = issuer
        self._empty_payload = issuer.resolved().empty_payload_signing
        self._nonces = Nonces()
        self._directory: Directory | None = None
        self._lock = asyncio.Lock()
        self._http = httpx.AsyncClient(
            verify=_trust(name, issuer.tls_ca),
            transport=http,
            timeout=issuer.timeout,
            follow_redirects=False,
            # Shorter than servers keep idle connections, so that we never post into a closing one.
            limits=httpx.Limits(max_connections=4, keepalive_expiry=3.0),
            headers={
                "user-agent": f"kmsd/{__version__}",
                "accept-language": "en",
                "accept-encoding": "identity",
            },
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, traceback)

    async def directory(self) -> Directory:
        """The server's directory, fetched once (RFC 8555 section 7.1.1)."""
        async with self._lock:
            if self._directory is None:
                answer = await self.get(self._issuer.directory, "directory")
                self._directory = answer.parse(Directory)
        return self._directory

    async def get(self, url: str, resource: str) -> Answer:
        """What is there for everybody, without a signature. Raises as `post` does."""
        return self._successful(await self._exchange("GET", url, resource))

    async def post(
        self,
        url: str,
        payload: object,
        signer: Signer,
        resource: str,
        accept: str = "application/json",
    ) -> Answer:
        """POST `payload` (made JSON), signed by `signer`; None: a POST-as-GET.

        resource: the RFC's word for what is asked, for errors. Raises PeerRefused for what the
        server refuses or garbles, Unavailable when there is no (timely) answer.
        """
        body = b"" if payload is None else msgspec.json.encode(payload)
        headers = {"content-type": JOSE_JSON, "accept": accept}
        https(url, resource, self.name)
        for _ in range(NONCE_BUDGET + 1):
            protected = header(signer, url) | {"nonce": await self._nonce()}
            draft = jose.unsigned(protected, body, self._empty_payload)
            signature = await signer.key.sign(draft.signing_input)
            content = msgspec.json.encode(draft.signed(signature))
            answer = await self._exchange("POST", url, resource, content, headers)
            if not _rejects_nonce(answer):
                return self._successful(answer)
            # One stale nonce means that the kept ones are, too; this reply's own is fresh.
            self._nonces.clear()
            self._nonces.keep(answer.headers)
        raise Unavailable(
            "ACME_NONCE_BUDGET",
            f"STI-CA {self.name} rejected {NONCE_BUDGET + 1} nonces in a row for {resource}.",
            issuer=self.name,
            resource=resource,
        )

    async def _nonce(self) -> str:
        if nonce := self._nonces.take():
            return nonce
        url = (await self.directory()).new_nonce
        answer = await self._exchange("HEAD", url, "newNonce")
        nonce = self._nonces.take()
        if answer.status in (405, 501) or (answer.status < 300 and not nonce):
            answer = await self._exchange("GET", url, "newNonce")
            nonce = self._nonces.take()
        self._successful(answer)
        if not nonce:
            raise problems.malformed(self.name, "newNonce", "without a usable Replay-Nonce")
        return nonce

    def _successful(self, answer: Answer) -> Answer:
        if answer.status >= 300:
            raise problems.refusal(
                self.name,
                answer.resource,
                answer.status,
                answer.headers,
                answer.body,
                time.time(),
            )
        return answer

    async def _exchange(
        self,
        method: str,
        url: str,
        resource: str,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        https(url, resource, self.name)
        try:
            async with (
                # httpx limits each read; a server that drips would never end.
                asyncio.timeout(self._issuer.timeout),
                self._http.stream(method, url, content=content, headers=headers) as response,
            ):
                body = await self._body(response, resource)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise self._unavailable(
                "ACME_TIMEOUT",
                f"did not answer {resource} within {self._issuer.timeout:g} seconds.",
                resource,
            ) from error
        except httpx.HTTPError as error:
            raise self._translated(error, resource) from error
        self._nonces.keep(response.headers)
        return Answer(resource, self.name, response.status_code, response.headers, body)

    async def _body(self, response: httpx.Response, resource: str) -> bytes:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise problems.malformed(self.name, resource, "compressed, which was not asked for")
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > BODY_LIMIT:
                raise problems.malformed(self.name, resource, f"with more than {BODY_LIMIT} octets")
        return bytes(body)

    def _translated(self, error: httpx.HTTPError, resource: str) -> Unavailable:
        said = problems.printable(str(error)).rstrip(".") or "the connection was closed"
        tls = _tls_error(error)
        if tls is not None and isinstance(error, httpx.ConnectError):
            trusted = self._issuer.tls_ca or "the system's trust store"
            why = (
                tls.verify_message if isinstance(tls, ssl.SSLCertVerificationError) else tls.reason
            )
            return self._unavailable(
                "ACME_TLS_FAILED",
                f"could not be trusted over HTTPS, checked with {trusted}: {why or tls}.",
                resource,
                "Check `directory` and `tls_ca` of this issuer and this host's clock.",
            )
        if isinstance(error, httpx.ConnectError):
            return self._unavailable(
                "ACME_UNREACHABLE",
                f"could not be reached: {said}.",
                resource,
                "Check `directory`, name resolution, firewall, and whether the STI-CA admits "
                "this host's address.",
            )
        return self._unavailable(
            "ACME_CONNECTION_LOST", f"broke off while asked for {resource}: {said}.", resource
        )

    def _unavailable(
        self, reason: str, what: str, resource: str, next_step: str = ""
    ) -> Unavailable:
        return Unavailable(
            reason,
            f"STI-CA {self.name} {what}",
            next_step=next_step,
            issuer=self.name,
            resource=resource,
        )


def https(url: str, resource: str, issuer: str) -> str:
    """`url` back if it is an https URL without credentials. Raises PeerRefused otherwise."""
    if not is_https(url):
        what = f"with a URL that is no https URL ({problems.printable(url) or 'empty'})"
        raise problems.malformed(issuer, resource, what)
    return url


def is_https(url: str) -> bool:
    """Whether this is an https URL that may be visited: no credentials in it, not endless."""
    if len(url) > 2048 or not (url.isascii() and url.isprintable()):
        return False
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    named = re.fullmatch(r"[A-Za-z0-9.:_-]+", parsed.host) is not None
    return parsed.scheme == "https" and named and not parsed.userinfo


def _trust(name: str, tls_ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=tls_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(
            "TLS_CA_UNREADABLE",
            f"tls_ca of STI-CA {name} holds no readable PEM certificates: {tls_ca} ({error}).",
            next_step="Put the CA certificate of its HTTPS server there, or leave tls_ca empty.",
            issuer=name,
        ) from error


def _rejects_nonce(answer: Answer) -> bool:
    if answer.status < 400:
        return False
    problem = problems.problem_in(answer.body)
    return problem is not None and problem.type == problems.URN + "badNonce"


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    # Who hangs up during the handshake says nothing about trust: a firewall does that.
    return None if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) else error
