"""Our subscriber account at an STI-PA: who asks, and the session that proves it.

A session is kept while it is fresh, and made anew once when the STI-PA no longer knows it.
A refused password is not sent again for an hour: accounts lock, and a thousand profiles share
this one. PROTOCOL 2.2, points 1 to 3.
"""

import asyncio
import base64
import re
from contextlib import suppress
from typing import Any

import msgspec

from kmsd.authority.exchange import ANSWER, Answer, Exchange
from kmsd.errors import KmsdError, Misconfigured, PeerRefused
from kmsd.settings import Authority as Settings
from kmsd.settings import PaAuthorization

SESSION_SECONDS = 3000
"""A session is used this long; it lives about an hour at the STI-PA (PROTOCOL 2.2, UNVERIFIED)."""
YOUNG_SECONDS = 60
"""A 403 in a session this young is about the request, not about the session."""
LOGIN_HOLD_SECONDS = 3600
"""How long a refused password is not sent again."""


class Subscriber:
    """The account of authority `name`; `password` goes to the STI-PA and nowhere else."""

    def __init__(self, name: str, settings: Settings, password: str, exchange: Exchange) -> None:
        self._name = name
        self._settings = settings
        self._password = password
        self._exchange = exchange
        self._session: _Session | None = None
        self._one_at_a_time = asyncio.Lock()
        self._refused_at = 0
        self._refused: PeerRefused | None = None

    async def ask(
        self, method: str, url: str, now: int, *, accept: str, limit: int, body: object = None
    ) -> Answer:
        """`Exchange.ask`, with our authorization. Logs in when there is no fresh session.

        Raises PeerRefused (STI_PA_LOGIN_REFUSED, STI_PA_ANSWER_INVALID), Unavailable,
        Misconfigured (AUTHORITY_USER).
        """

        async def once(session: _Session) -> Answer:
            return await self._exchange.ask(
                method,
                url,
                accept=accept,
                limit=limit,
                body=body,
                authorization=session.authorization,
            )

        before = self._session
        session = await self._fresh(now)
        answer = await once(session)
        if self._settings.authorization is PaAuthorization.BASIC:
            if answer.status == 401:
                raise self._refuse(answer, now)
            return answer
        stale = answer.status == 401 or now - session.opened >= YOUNG_SECONDS
        if session is before and stale and answer.status in (401, 403):
            if self._session is session:
                self._session = None
            answer = await once(await self._fresh(now))
        return answer

    async def log_out(self) -> None:
        """Ends the session at the STI-PA if there is one; a failure to do so is nobody's."""
        session, self._session = self._session, None
        if session is None or self._settings.authorization is PaAuthorization.BASIC:
            return
        with suppress(KmsdError):
            await self._exchange.ask(
                "POST",
                self._url(self._settings.logout_path),
                accept="application/json",
                limit=ANSWER,
                authorization=session.authorization,
            )

    async def _fresh(self, now: int) -> "_Session":
        async with self._one_at_a_time:
            session = self._session
            if session is None or not 0 <= now - session.opened < SESSION_SECONDS:
                self._session = session = await self._open(now)
            return session

    async def _open(self, now: int) -> "_Session":
        if not self._settings.user:
            raise Misconfigured(
                "AUTHORITY_USER",
                f"Authority {self._name} has no user, and the STI-PA wants to know who asks.",
                next_step="Set user and password of the authority.",
            )
        if self._refused is not None and 0 <= now - self._refused_at < LOGIN_HOLD_SECONDS:
            raise self._login_refused(self._refused.problem)
        if self._settings.authorization is PaAuthorization.BASIC:
            pair = f"{self._settings.user}:{self._password}".encode()
            value = base64.b64encode(pair).decode()
            self._exchange.conceal(value)
            return _Session(f"Basic {value}", now)
        token = await self._log_in(now)
        self._exchange.conceal(token)
        bearer = self._settings.authorization is PaAuthorization.BEARER
        return _Session(f"Bearer {token}" if bearer else token, now)

    async def _log_in(self, now: int) -> str:
        answer = await self._exchange.ask(
            "POST",
            self._url(self._settings.login_path),
            accept="application/json",
            limit=ANSWER,
            body={"userId": self._settings.user, "password": self._password},
        )
        login = _read(answer) if answer.status < 400 else None
        if answer.status >= 400 or (login and login.status.lower() not in ("", "success")):
            raise self._refuse(answer, now)
        # Anything else would be repeated by the HTTP library in its error about the header.
        if login is None or not _TOKEN.fullmatch(login.access_token):
            raise self._exchange.invalid("the login has no usable accessToken", answer.text)
        self._refused = None
        return login.access_token

    def _refuse(self, answer: Answer, now: int) -> PeerRefused:
        self._refused = self._login_refused(self._exchange.words(answer.text))
        self._refused_at = now
        self._session = None
        return self._refused

    def _login_refused(self, problem: str) -> PeerRefused:
        return PeerRefused(
            "STI_PA_LOGIN_REFUSED",
            f"The STI-PA {self._name} refused the login of user {self._settings.user}.",
            peer="sti-pa",
            problem=problem,
            next_step="Correct the user, the password or the account at the STI-PA, and restart"
            " the keeper; else the login is tried again an hour after it was refused.",
        )

    def _url(self, path: str) -> str:
        return self._settings.url.rstrip("/") + path


class _Session(msgspec.Struct, frozen=True):
    authorization: str
    opened: int

    def __repr__(self) -> str:
        return f"_Session(authorization=<redacted>, opened={self.opened})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("opened", self.opened)]


class _Login(msgspec.Struct, frozen=True):
    status: str = ""
    access_token: str = msgspec.field(name="accessToken", default="")


_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")


def _read(answer: Answer) -> _Login | None:
    try:
        return msgspec.json.decode(answer.body, type=_Login)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
