"""The client for programs on asyncio."""

# ruff: noqa: ASYNC109 - a deadline travels to the signer, which drops what is late; a timeout
# of the caller alone would leave the signer at work for nobody.

import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Self

from kmsapi.v1 import signing_pb2 as pb

from kmsd_client.answers import CredentialChange, Signed, results_of
from kmsd_client.calls import LARGEST_WIRE
from kmsd_client.connections import Connections
from kmsd_client.errors import Refused, SigningError
from kmsd_client.passports import (
    Attest,
    Base,
    Dest,
    Div,
    Passport,
    Rcd,
    Rph,
    Shaken,
    to_message,
    to_wire,
)
from kmsd_client.terms import (
    DEFAULT_CONNECTIONS,
    DEFAULT_FRAME_ITEMS,
    DEFAULT_QUEUE_ITEMS,
    DEFAULT_TIMEOUT,
    Terms,
    addresses,
)
from kmsd_client.tls import Tls
from kmsd_client.watching import watch


class AsyncClient:
    """Signs PASSporTs at kmsd signers.

    targets: one address or several of signers that may sign alike: "host:port", "unix:/path",
        "dns:///name:port" (each connection goes to one of its addresses).
    tls: who the caller is; None means plaintext and is for loopback and Unix sockets only.
    profile: whom to sign for where a call does not say.
    timeout: seconds for each call where it does not say; covers connecting and other targets.
    connections: to each target, at most; one is made at first, and more as calls find no room.
        Signers that share a port share these: more connections spread the calls more evenly.
    frame_items: calls that travel together at most, 1 to 256 and no more than the signer's limit.
    queue_items: calls that wait to travel at most; one more is Overloaded "CLIENT_QUEUE_FULL", and
        so is a call behind so many others that they take longer than 30 ms, when that has been so
        for a tenth of a second.

    Making one costs nothing and touches nothing: the first call, or entering `async with`, reads
    the TLS files (OSError, ValueError), and the first call connects. A client belongs to one
    event loop and one process; any number of its tasks may call at once.

    Every call raises the errors of `kmsd_client.errors`: Refused and Denied for what no signer
    will sign, Unavailable, DeadlineExceeded and Overloaded for what may work later, SigningError
    for a signer that is broken; and TypeError for an argument of the wrong type.
    A call that is tried at a second signer may have been signed by the first one too.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        tls: Tls | None,
        profile: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        connections: int = DEFAULT_CONNECTIONS,
        frame_items: int = DEFAULT_FRAME_ITEMS,
        queue_items: int = DEFAULT_QUEUE_ITEMS,
    ) -> None:
        self._terms = Terms(
            addresses(targets), profile, timeout, connections, frame_items, queue_items
        )
        self._tls = tls
        self._sequence = itertools.count(1)
        self._connections: Connections | None = None
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({list(self._terms.targets)!r}, profile={self._terms.profile!r})"
        )

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Ends watches, waits for calls under way, disconnects. Again: does nothing.

        grace: seconds to wait, by default the client's timeout; a call that is not answered by
        then raises Unavailable "CLOSED". A call made from now on raises RuntimeError.
        """
        if self._connections is not None and not self._closed:
            self._closed = True
            await self._connections.close(self._terms.timeout if grace is None else grace)
        self._closed = True

    async def sign_shaken(
        self,
        orig: str,
        dest: Dest,
        attest: Attest,
        *,
        origid: str = "",
        iat: int = 0,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """Signs a SHAKEN PASSporT (RFC 8588); fields as in `Shaken`."""
        return await self.sign(
            Shaken(orig, dest, attest, origid, iat), profile=profile, timeout=timeout
        )

    async def sign_base(
        self,
        orig: str,
        dest: Dest,
        *,
        iat: int = 0,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """Signs a base PASSporT (RFC 8225); fields as in `Base`."""
        return await self.sign(Base(orig, dest, iat), profile=profile, timeout=timeout)

    async def sign_div(
        self,
        orig: str,
        dest: Dest,
        div: str,
        iat: int,
        *,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """Signs that a call was retargeted (RFC 8946); fields as in `Div`."""
        return await self.sign(Div(orig, dest, div, iat), profile=profile, timeout=timeout)

    async def sign_rph(
        self,
        orig: str,
        dest: Dest,
        auth: Sequence[str],
        *,
        iat: int = 0,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """Signs a resource priority (RFC 8443); fields as in `Rph`."""
        return await self.sign(Rph(orig, dest, auth, iat), profile=profile, timeout=timeout)

    async def sign_rcd(
        self,
        orig: str,
        dest: Dest,
        *,
        nam: str = "",
        apn: str = "",
        icn: str = "",
        jcd: str = "",
        jcl: str = "",
        rcdi: Mapping[str, str] | None = None,
        crn: str = "",
        iat: int = 0,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> Signed:
        """Signs rich call data (RFC 9795); fields as in `Rcd`."""
        rcd = Rcd(orig, dest, nam, apn, icn, jcd, jcl, rcdi or {}, crn, iat)
        return await self.sign(rcd, profile=profile, timeout=timeout)

    async def sign(
        self, passport: Passport, *, profile: str | None = None, timeout: float | None = None
    ) -> Signed:
        """Signs one PASSporT of any type.

        Calls that are made at the same time travel together, in frames as long as the load
        makes them; a lone call leaves at once.
        """
        connections = self._open()
        connections.check_room()  # first: a refusal must cost next to nothing
        wire = to_wire(passport)
        if len(wire) <= LARGEST_WIRE:
            name, seconds = self._terms.of(profile, timeout)
            return await connections.sign(wire, name, seconds)
        [outcome] = await self._frame([passport], profile, timeout)
        if isinstance(outcome, SigningError):
            raise outcome
        return outcome

    async def sign_many(
        self,
        passports: Sequence[Passport],
        *,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> list[Signed | SigningError]:
        """Signs a frame: all of it in one request, at one signer, under one epoch.

        Gives one outcome for each PASSporT, in their order: `Signed`, or the error (not raised)
        of this one alone. Raises what concerns the frame as a whole: too many for one (the
        signer's `frame_items`, by default 256), an unknown profile, no signer there. A frame
        of one cannot tell the two apart: its refusal is in the list. No PASSporTs: no request.
        """
        if not passports:
            return []
        try:
            return await self._frame(passports, profile, timeout)
        except Refused as refused:
            if len(passports) == 1:
                return [refused]
            raise

    def watch(self, profiles: Sequence[str] = ()) -> AsyncGenerator[CredentialChange, None]:
        """Follows which credential each profile signs with, and which one is next, at one of the
        signers.

        profiles: names; none: all that the caller may use. Gives an `ActiveCredential` for each,
        a `ComingCredential` where the next one is public already, then `Synced`, then every
        change as it happens, an endless stream until the client is closed. When the connection is
        lost it reconnects, gives what changed meanwhile (`Withdrawn`, `CalledOff` for what is
        gone) and `Synced` again; what is unchanged is not repeated.
        Signers on other hosts have their own keys: to watch each, use a client for each.
        Leave the loop early through `contextlib.aclosing`. Raises Refused and Denied.
        """
        if isinstance(profiles, str):
            raise TypeError("profiles is a list of names, not one name")
        return watch(self._open(), profiles, self._terms.timeout)

    async def healthy(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Whether one of the signers says that it serves (grpc.health.v1). Raises nothing for
        a signer that is away: that is the answer False."""
        _, seconds = self._terms.of(None, timeout)
        return await self._open().healthy(service, seconds)

    async def _frame(
        self, passports: Sequence[Passport], profile: str | None, timeout: float | None
    ) -> list[Signed | SigningError]:
        name, seconds = self._terms.of(profile, timeout)
        request = pb.SignRequest(
            sequence=next(self._sequence),
            profile=name,
            passports=[to_message(passport) for passport in passports],
        )
        return results_of(request, await self._open().sign_frame(request, seconds))

    def _open(self) -> Connections:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._connections is None:
            self._connections = Connections(self._terms, self._tls)
        return self._connections
