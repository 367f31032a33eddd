"""The STI-PAs and STI-CAs the keeper talks to, each with the secrets and keys it needs.

An ACME account belongs to one profile at one STI-CA, and its key is in the HSM, made for that
alone: it never signs a PASSporT, and a PASSporT key never signs for an account.
"""

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from kmsd import trust
from kmsd.acme.client import Acme
from kmsd.authority import Authority
from kmsd.config import mac_key, secret
from kmsd.errors import (
    KmsdError,
    Misconfigured,
    NotFound,
    PeerRefused,
    Precondition,
    Unavailable,
)
from kmsd.hsm import Hsm, new_key_id
from kmsd.hsmthread import HsmThread
from kmsd.model import Account, BirthRecord
from kmsd.settings import Configuration, Issuer
from kmsd.shares import Shares
from kmsd.store import Event, Store

NO_VERDICT = frozenset({"ACME_ANSWER_MALFORMED", "ACME_REDIRECT"})
"""Refusals by somebody who is no ACME server: whether the account has its new key is not known."""


class HsmKey:
    """A key in the HSM that signs ES256 (a JWS of an account, or a revocation by a certificate).

    public_key: DER SubjectPublicKeyInfo.
    """

    def __init__(self, hsm: HsmThread, key_id: str, public_key: bytes) -> None:
        self._hsm = hsm
        self._key_id = key_id
        self.public_key = public_key

    async def sign(self, data: bytes) -> bytes:
        """64 bytes r||s over SHA-256 of `data`."""
        return await self._hsm(Hsm.sign, self._key_id, hashlib.sha256(data).digest())


class Counterparts:
    """Opened once by the keeper; sessions to STI-PAs stay open, those to STI-CAs are per step."""

    def __init__(self, configuration: Configuration, store: Store, hsm: HsmThread) -> None:
        self._configuration = configuration
        self._store = store
        self._hsm = hsm
        self._authorities: dict[str, Authority] = {}
        self._opened = AsyncExitStack()
        self._turn = asyncio.Lock()
        self._shares: defaultdict[tuple[str, str], Shares] = defaultdict(Shares)

    async def open(self) -> None:
        """Reads the secrets and roots of every authority. Raises Misconfigured."""
        for name, settings in self._configuration.authorities.items():
            password = ""
            if settings.password:  # none is needed where SPC tokens come from a file
                password = secret(settings.password, f"authorities.{name}.password")
            root = await asyncio.to_thread(_root, name, settings.root)
            authority = Authority(name, settings, password=password, root_pem=root)
            self._authorities[name] = await self._opened.enter_async_context(authority)

    async def close(self) -> None:
        await self._opened.aclose()

    def authority(self, name: str) -> Authority:
        """The STI-PA called `name` in the configuration."""
        return self._authorities[name]

    @asynccontextmanager
    async def issuer(self, profile: str, name: str) -> AsyncIterator[tuple[Acme, Account]]:
        """The STI-CA called `name`, with the profile's account there made and stored."""
        self._settings(name)  # before a key is made for it
        await self._finish(profile, name)
        async with self._shares[profile, name].shared(), self._lent(profile, name) as lent:
            yield lent

    async def roll_key(self, profile: str, name: str) -> Account:
        """The account with a new key (RFC 8555 section 7.3.5); the old one is destroyed.

        Stored before it is begun: after a crash, and after Unavailable, whoever uses the account
        next goes on with it first, so that no step is taken with a key the STI-CA has forgotten.
        Raises Precondition (ACCOUNT_NONE), and as Acme.roll_key: then the account keeps its key.
        """
        self._settings(name)
        async with self._shares[profile, name].alone():
            account = await asyncio.to_thread(self._store.account, profile, name)
            if account is None or not account.url:
                raise Precondition(
                    "ACCOUNT_NONE",
                    f"Profile {profile} has no account at STI-CA {name} yet.",
                    next_step="The first order makes it, with a new key.",
                    profile=profile,
                    issuer=name,
                )
            if not account.coming_key_id:
                account = replace(account, coming_key_id=new_key_id())
                await self._save(account, "account_key_begun")
            return await self._rolled(account)

    async def settle(self) -> None:
        """Ends every change of an account's key that was begun. What goes wrong is tried again by
        whoever uses the account, and here the next time."""
        for account in await asyncio.to_thread(self._store.accounts):
            with suppress(KmsdError):
                await self._finish(account.profile, account.issuer)

    async def _finish(self, profile: str, name: str) -> None:
        account = await asyncio.to_thread(self._store.account, profile, name)
        if account is None or not (account.coming_key_id or account.former):
            return
        async with self._shares[profile, name].alone():
            account = await asyncio.to_thread(self._store.account, profile, name)
            if account is not None and account.coming_key_id:
                try:
                    await self._rolled(account)
                except PeerRefused as error:
                    if error.reason in NO_VERDICT:
                        raise  # else the account keeps its key, and can be used
            elif account is not None:
                await self._without_former(account)

    async def _rolled(self, account: Account) -> Account:
        assert account.birth is not None  # noqa: S101  an account with a URL has a key
        label = f"kmsd account {account.profile} {account.issuer}"
        made_at = int(time.time())
        birth = await self._hsm(Hsm.generate, account.coming_key_id, label, made_at)
        # Not by `issuer`: that would make a new account for a key which the STI-CA has forgotten.
        client = self.client(account.issuer, self.key(account.birth), account.url)
        async with client as acme:
            try:
                url = await acme.roll_key(self.key(birth))
            except PeerRefused as error:
                if error.reason not in NO_VERDICT:
                    gone = error.reason == "ACME_ACCOUNT_DOES_NOT_EXIST"
                    stays = replace(account, coming_key_id="", former=birth)
                    stays = replace(stays, url="") if gone else stays
                    await self._save(stays, "account_key", error.reason)
                    await self._without_former(stays)
                raise
        rolled = replace(
            account,
            key_id=birth.key_id,
            birth=birth,
            url=url,
            coming_key_id="",
            former=account.birth,
        )
        await self._save(rolled, "account_key")
        return await self._without_former(rolled)

    async def _without_former(self, account: Account) -> Account:
        """Destroys the key that the account has no more, now or when the HSM is back."""
        if account.former is None:
            return account
        try:
            await self._hsm(Hsm.destroy, account.former.key_id, account.former.public_key)
        except NotFound:
            pass  # done before, by us or by a person
        except KmsdError:
            return account
        cleared = replace(account, former=None)
        await asyncio.to_thread(self._store.save_account, cleared)
        return cleared

    async def _save(self, account: Account, what: str, outcome: str = "ok") -> None:
        event = Event(
            int(time.time()),
            what,
            outcome,
            account.profile,
            detail={"issuer": account.issuer, "key": account.key_id},
        )
        await asyncio.to_thread(self._store.save_account, account, event)

    @asynccontextmanager
    async def _lent(self, profile: str, name: str) -> AsyncIterator[tuple[Acme, Account]]:
        account = await self.account(profile, name)
        assert account.birth is not None  # noqa: S101  account() made the key
        key = self.key(account.birth)
        async with self.client(name, key, account.url) as acme:
            url = await acme.ensure_account()
            known = url == account.url
            if not known:
                account = replace(account, url=url)
                await asyncio.to_thread(self._store.save_account, account)
            try:
                yield acme, account
            except PeerRefused as error:
                if not known or error.reason != "ACME_ACCOUNT_DOES_NOT_EXIST":
                    raise
                # The same key at another directory, or a STI-CA that lost its memory.
                await asyncio.to_thread(self._store.save_account, replace(account, url=""))
                raise Unavailable(
                    error.reason,
                    f"{error.message} It is made anew.",
                    problem=error.problem,
                    issuer=name,
                ) from error

    def client(self, name: str, key: HsmKey, account_url: str = "") -> Acme:
        """A client of the STI-CA called `name` for whoever signs with `key`; it makes no account
        by itself. Raises Misconfigured (ISSUER_UNKNOWN, and as Acme does)."""
        settings = self._settings(name)
        mac = settings.eab_mac_key
        eab = mac_key(mac, f"issuers.{name}.eab_mac_key") if mac else None
        return Acme(name, settings, key, account_url=account_url, mac_key=eab)

    async def staging_roots(self, name: str) -> tuple[str, ...]:
        """PEM certificates to which what the staging service `name` issues may lead, too.

        Raises Misconfigured (ROOT_UNREADABLE).
        """
        path = self._settings(name).staging_root
        if not path:
            return ()
        pem = await asyncio.to_thread(_root, name, path)
        found = trust.pinned(pem)
        return tuple(one.public_bytes(Encoding.PEM).decode("ascii") for one in found)

    def key(self, birth: BirthRecord) -> HsmKey:
        """The key in the HSM with this birth record, to sign with."""
        return HsmKey(self._hsm, birth.key_id, birth.public_key)

    async def account(self, profile: str, issuer: str) -> Account:
        """The account with its key made; its CKA_ID is stored before the key exists."""
        async with self._turn:
            account = await asyncio.to_thread(self._store.account, profile, issuer)
            if account is None:
                account = Account(profile, issuer, new_key_id())
                await asyncio.to_thread(self._store.save_account, account)
            if account.birth is None:
                label = f"kmsd account {profile} {issuer}"
                birth = await self._hsm(Hsm.generate, account.key_id, label, int(time.time()))
                account = replace(account, birth=birth)
                await asyncio.to_thread(self._store.save_account, account)
            return account

    def _settings(self, name: str) -> Issuer:
        settings = self._configuration.issuers.get(name)
        if settings is None:
            raise Misconfigured(
                "ISSUER_UNKNOWN",
                f"There is no STI-CA {name!r} in the configuration any more.",
                next_step="Put it back, or destroy the credential and enroll anew.",
            )
        return settings


def _root(name: str, path: str) -> str:
    try:
        return Path(path).read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not PEM"
        raise Misconfigured(
            "ROOT_UNREADABLE",
            f"root of authority {name} cannot be read: {path}: {what}.",
            next_step="Write the path of the STI-PA's root certificate in PEM.",
        ) from error
