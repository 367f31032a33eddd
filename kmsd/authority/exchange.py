"""One HTTPS request to an STI-PA and its bounded answer: no redirects, no surprises.

Foreign exceptions become ours here. Nothing in an error holds a secret: our own are taken out
of what the STI-PA says, and so is all that looks like one. Proxies are taken from the
environment, as HTTPS_PROXY has them.
"""

import asyncio
import json
import re
import ssl
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Self

import httpx
import msgspec

from kmsd.errors import Misconfigured, PeerRefused, Unavailable
from kmsd.retryafter import retry_after

ANSWER = 262_144
"""Octets of a JSON answer, at most."""
SLOWEST = 100_000
"""Octets a second; an answer that drips slower than this is given up."""
PROBLEM = 4000
"""Characters of the STI-PA's own words that are kept."""


class Answer(msgspec.Struct, frozen=True):
    """status below 500, not 3xx, 408 or 429. body: as sent, within the limit asked for."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"Answer(status={self.status}, body=<{len(self.body)} octets>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("status", self.status)]


class Exchange:
    """Requests to one STI-PA.

    name: of the authority in the configuration. tls_ca: PEM file, empty: the system's trust
    store. timeout: seconds. password: never repeated in an error.
    Raises Misconfigured (TLS_CA_UNREADABLE).
    """

    def __init__(self, name: str, tls_ca: str, timeout: float, password: str) -> None:
        try:
            context = ssl.create_default_context(cafile=tls_ca or None)
        except OSError as error:
            raise Misconfigured(
                "TLS_CA_UNREADABLE",
                f"tls_ca of authority {name} cannot be read: {tls_ca}: {error.strerror or error}.",
            ) from error
        self._name = name
        self._timeout = timeout
        self._password = password
        self._concealed: deque[str] = deque(maxlen=4)
        self._client = httpx.AsyncClient(verify=context, timeout=timeout, follow_redirects=False)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self,
        method: str,
        url: str,
        *,
        accept: str,
        limit: int,
        body: object = None,
        authorization: str = "",
    ) -> Answer:
        """The answer of at most `limit` octets. `body` is sent as JSON unless it is None.

        Raises Unavailable (STI_PA_UNREACHABLE, STI_PA_CONNECTION_RESET, STI_PA_TLS_FAILED,
        STI_PA_TIMEOUT, STI_PA_UNAVAILABLE, STI_PA_RATE_LIMITED), PeerRefused
        (STI_PA_ANSWER_INVALID).
        """
        # Not compressed: what a compressed answer grows to is bounded by nobody.
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        if authorization:
            headers["Authorization"] = authorization
        try:
            target = _https(url)
            async with (
                asyncio.timeout(self._timeout + limit / SLOWEST),
                self._client.stream(method, target, json=body, headers=headers) as response,
            ):
                answer = Answer(response.status_code, await self._bounded(response, limit))
        except httpx.InvalidURL as error:
            raise self.invalid(f"{url!r} is not an https URL that can be fetched") from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Unavailable(
                "STI_PA_TIMEOUT",
                f"The STI-PA {self._name} did not answer in time.",
                next_step=_ALLOW_LIST,
                url=url,
            ) from error
        except httpx.TransportError as error:
            raise self._unreachable(url, error) from error
        self._check_status(response, answer, url)
        return answer

    def conceal(self, secret: str) -> None:
        """From now on `secret` is taken out of the STI-PA's words; the last four are kept."""
        self._concealed.append(secret)

    def invalid(self, what: str, body: str = "") -> PeerRefused:
        """The refusal of an answer that cannot be used."""
        return PeerRefused(
            "STI_PA_ANSWER_INVALID",
            f"The STI-PA {self._name} gave an answer that cannot be used: {what}.",
            peer="sti-pa",
            problem=self.words(body),
            next_step="Check the authority's url and paths against the STI-PA's documentation.",
        )

    def refusal(self, answer: Answer, what: str, reason: str = "STI_PA_REFUSED") -> PeerRefused:
        """The STI-PA does not give `what`; why, it says in its own words."""
        return PeerRefused(
            reason,
            f"The STI-PA {self._name} refused {what} (HTTP {answer.status}).",
            peer="sti-pa",
            problem=self.words(answer.text),
            next_step="Read the STI-PA's own words; account, SPC and rights are set there.",
            status=str(answer.status),
        )

    def words(self, body: str) -> str:
        """What the STI-PA said, word for word, but without secrets and control characters."""
        # As JSON escapes it too; and before it is cut, so that no part of a secret is left.
        for secret in filter(None, (self._password, *self._concealed)):
            body = body.replace(secret, _REMOVED).replace(json.dumps(secret)[1:-1], _REMOVED)
        body = _SECRET_MEMBER.sub(rf'\1"{_REMOVED}"', body)
        body = _JWT.sub(_REMOVED, body)
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", body)[:PROBLEM]

    async def _bounded(self, response: httpx.Response, limit: int) -> bytes:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self.invalid("it is compressed, and that was not asked for")
        parts = bytearray()
        async for part in response.aiter_raw():
            parts += part
            if len(parts) > limit:
                raise self.invalid(f"it is larger than {limit} octets")
        return bytes(parts)

    def _check_status(self, response: httpx.Response, answer: Answer, url: str) -> None:
        if 300 <= answer.status < 400:
            raise self.invalid(f"HTTP {answer.status}, a redirect, and none is followed")
        wait = retry_after(response.headers, time.time()) or 0.0
        if answer.status == 429:
            raise Unavailable(
                "STI_PA_RATE_LIMITED",
                f"The STI-PA {self._name} limits the rate of what it is asked.",
                retry_after=wait,
                url=url,
                problem=self.words(answer.text),
            )
        if answer.status >= 500 or answer.status == 408:
            raise Unavailable(
                "STI_PA_UNAVAILABLE",
                f"The STI-PA {self._name} answered HTTP {answer.status}.",
                retry_after=wait,
                url=url,
                problem=self.words(answer.text),
            )

    def _unreachable(self, url: str, error: httpx.TransportError) -> Unavailable:
        causes = tuple(_causes(error))
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            return Unavailable(
                "STI_PA_TLS_FAILED",
                f"The HTTPS certificate of the STI-PA {self._name} is not trusted: {error}.",
                next_step="Check url and tls_ca of the authority.",
                url=url,
            )
        reset = isinstance(error, httpx.ReadError | httpx.RemoteProtocolError) or any(
            isinstance(cause, ConnectionResetError | BrokenPipeError) for cause in causes
        )
        return Unavailable(
            "STI_PA_CONNECTION_RESET" if reset else "STI_PA_UNREACHABLE",
            f"The STI-PA {self._name} "
            + ("cut the connection." if reset else "cannot be reached."),
            next_step=_ALLOW_LIST,
            url=url,
            cause=type(error).__name__,
        )


_ALLOW_LIST = (
    "Check that this host's public IP address is on the STI-PA's IP allow-list (staging and"
    " production, and API and web pages, have separate ones), then network and proxy."
)
_REMOVED = "[removed]"
_SECRET_MEMBER = re.compile(
    r'("(?:accessToken|refreshToken|token|password|authorization|atc|tkauth)"\s*:\s*)'
    r'"(?:[^"\\]|\\.)*"?',
    re.IGNORECASE,
)
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _https(url: str) -> httpx.URL:
    target = httpx.URL(url)
    if target.scheme != "https" or not target.host or target.userinfo:
        raise httpx.InvalidURL("not a plain https URL")
    return target


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
