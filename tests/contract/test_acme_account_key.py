"""Another key for the account (RFC 8555 section 7.3.5), with crashes and lost replies between.

The account at the STI-CA is a model that knows keys only: which account has which.
"""

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
import pytest

from kmsd import jose
from kmsd.acme.client import Acme
from kmsd.errors import KmsdError, PeerRefused, Unavailable
from kmsd.failures import FailureClass, failure_class
from kmsd.settings import Issuer
from tests.hostile_ca import URN
from tests.pebble import SoftKey

CA = "https://ca.example"
DIRECTORY = {name: f"{CA}/{name}" for name in ("newNonce", "newAccount", "newOrder", "keyChange")}
Fault = Callable[[Callable[[], httpx.Response]], httpx.Response]


class Accounts:
    """An STI-CA that has accounts and nothing else. Signatures are judged in test_acme_judge."""

    def __init__(self) -> None:
        self.directory = dict(DIRECTORY)
        self.by_key: dict[str, str] = {}
        self.seen: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self._numbers = count(1)

    def has(self, key: SoftKey) -> str:
        """The account of the key is made, as it was some day before."""
        url = f"{CA}/account/{next(self._numbers)}"
        self.by_key[point(key)] = url
        return url

    def owner(self, key: SoftKey) -> str:
        return self.by_key.get(point(key), "")

    async def answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.strip("/")
        if request.method != "POST":
            return reply(self.directory if name == "directory" else {})
        jws = json.loads(request.content)
        header, payload = (json.loads(jose.b64url_decode(jws[m])) for m in ("protected", "payload"))
        self.seen.append(name)
        handlers = {"newAccount": self._new_account, "keyChange": self._key_change}

        def regular() -> httpx.Response:
            return handlers[name](header, payload)

        faults = self.faults.get(name)
        return faults.pop(0)(regular) if faults else regular()

    def _new_account(self, header: dict[str, Any], payload: dict[str, Any]) -> httpx.Response:
        known = self.by_key.get(header["jwk"]["x"])
        if not known and payload.get("onlyReturnExisting"):
            return refusal("accountDoesNotExist", 400)
        if not known:
            known = self.by_key[header["jwk"]["x"]] = f"{CA}/account/{next(self._numbers)}"
        return reply({"status": "valid"}, headers={"location": known})

    def _key_change(self, header: dict[str, Any], payload: dict[str, Any]) -> httpx.Response:
        inner = json.loads(jose.b64url_decode(payload["protected"]))
        change = json.loads(jose.b64url_decode(payload["payload"]))
        old, new = change["oldKey"]["x"], inner["jwk"]["x"]
        if self.by_key.get(old) != header["kid"]:
            return refusal("unauthorized", 403)  # a signature by a key it does not have
        if new in self.by_key:
            return refusal("malformed", 409, {"location": self.by_key[new]})
        self.by_key[new] = self.by_key.pop(old)
        return reply({"status": "valid"})


def reply(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> httpx.Response:
    given = {"replay-nonce": "abc", "content-type": "application/json"} | (headers or {})
    stream = httpx.ByteStream(json.dumps(body).encode())
    return httpx.Response(status, headers=given, stream=stream)


def refusal(kind: str, status: int, headers: dict[str, str] | None = None) -> httpx.Response:
    return reply({"type": URN + kind, "detail": kind}, status, headers)


def point(key: SoftKey) -> str:
    return jose.jwk(key.public_key)["x"]


def unsent(regular: Callable[[], httpx.Response]) -> httpx.Response:
    raise httpx.ConnectError("the network is down")


def lost(regular: Callable[[], httpx.Response]) -> httpx.Response:
    regular()
    raise httpx.ReadError("the connection was closed")


def portal(regular: Callable[[], httpx.Response]) -> httpx.Response:
    return httpx.Response(403, stream=httpx.ByteStream(b"<html>Please sign in</html>"))


def says(kind: str, status: int, *, done: bool = False) -> Fault:
    def fault(regular: Callable[[], httpx.Response]) -> httpx.Response:
        if done:
            regular()
        return refusal(kind, status, {"retry-after": "120"})

    return fault


@pytest.fixture
def ca() -> Accounts:
    return Accounts()


@pytest.fixture
def old() -> SoftKey:
    return SoftKey()


@pytest.fixture
def new() -> SoftKey:
    return SoftKey()


def client(ca: Accounts, key: SoftKey, account_url: str = "") -> Acme:
    issuer = Issuer(directory=f"{CA}/directory")
    transport = httpx.MockTransport(ca.answer)
    return Acme("ca", issuer, key, account_url=account_url, http=transport)


async def rolled(ca: Accounts, old: SoftKey, new: SoftKey, account_url: str = "") -> str:
    """As a keeper that has just started does it."""
    async with client(ca, old, account_url) as acme:
        return await acme.roll_key(new)


async def failed(ca: Accounts, old: SoftKey, new: SoftKey, account_url: str = "") -> KmsdError:
    with pytest.raises((PeerRefused, Unavailable)) as caught:
        await rolled(ca, old, new, account_url)
    error: KmsdError = caught.value
    return error


@pytest.mark.parametrize("known", [True, False])
async def test_the_account_stays_and_the_key_is_another(
    ca: Accounts, old: SoftKey, new: SoftKey, known: bool
) -> None:
    url = ca.has(old)
    assert await rolled(ca, old, new, url if known else "") == url
    assert (ca.owner(old), ca.owner(new)) == ("", url)
    assert ca.seen == (["keyChange"] if known else ["newAccount", "keyChange"])


@pytest.mark.parametrize("known", [True, False])
async def test_a_keeper_that_crashed_after_the_change_finds_it_done(
    ca: Accounts, old: SoftKey, new: SoftKey, known: bool
) -> None:
    url = ca.has(new)
    assert await rolled(ca, old, new, url if known else "") == url
    assert len(ca.by_key) == 1, "no account was made on the way"


async def test_a_change_whose_reply_was_lost_is_seen_to_be_done(
    ca: Accounts, old: SoftKey, new: SoftKey
) -> None:
    url = ca.has(old)
    ca.faults["keyChange"] = [lost]
    async with client(ca, old, url) as acme:
        assert await acme.roll_key(new) == url
        assert await acme.ensure_account() == url
    assert ca.owner(new) == url


@pytest.mark.parametrize("status", [409, 500])
async def test_a_change_that_was_done_and_refused_all_the_same_is_done(
    ca: Accounts, old: SoftKey, new: SoftKey, status: int
) -> None:
    url = ca.has(old)
    ca.faults["keyChange"] = [says("serverInternal", status, done=True)]
    assert await rolled(ca, old, new, url) == url


async def test_a_change_that_never_arrived_is_begun_anew_by_the_next_call(
    ca: Accounts, old: SoftKey, new: SoftKey
) -> None:
    url = ca.has(old)
    ca.faults["keyChange"] = [unsent]
    error = await failed(ca, old, new, url)
    assert error.reason == "ACME_UNREACHABLE"
    assert ca.owner(old) == url
    assert await rolled(ca, old, new, url) == url


async def test_while_it_is_not_known_what_was_done_nothing_is_claimed(
    ca: Accounts, old: SoftKey, new: SoftKey
) -> None:
    url = ca.has(old)
    ca.faults = {"keyChange": [lost], "newAccount": [unsent]}
    assert isinstance(await failed(ca, old, new, url), Unavailable)
    async with client(ca, old, url) as acme:
        assert await acme.find_account(new) == url
        assert await acme.find_account(old) == ""
        assert await acme.roll_key(new) == url


async def test_after_a_failure_the_client_still_has_the_old_key(
    ca: Accounts, old: SoftKey, new: SoftKey
) -> None:
    url = ca.has(old)
    ca.faults["keyChange"] = [says("badPublicKey", 400)]
    async with client(ca, old, url) as acme:
        with pytest.raises(PeerRefused) as refused:
            await acme.roll_key(new)
        assert refused.value.reason == "ACME_BAD_PUBLIC_KEY"
        assert await acme.roll_key(SoftKey()) == url


@pytest.mark.parametrize("known", [True, False])
async def test_a_key_that_has_another_account_is_not_taken_from_it(
    ca: Accounts, old: SoftKey, new: SoftKey, known: bool
) -> None:
    url, other = ca.has(old), ca.has(new)
    error = await failed(ca, old, new, url if known else "")
    assert error.reason == "ACME_KEY_IN_USE"
    assert error.next_step
    assert (ca.owner(old), ca.owner(new)) == (url, other)


@pytest.mark.parametrize("known", [True, False])
async def test_an_account_of_neither_key_is_not_made_by_the_way(
    ca: Accounts, old: SoftKey, new: SoftKey, known: bool
) -> None:
    error = await failed(ca, old, new, f"{CA}/account/7" if known else "")
    assert error.reason == ("ACME_UNAUTHORIZED" if known else "ACME_ACCOUNT_DOES_NOT_EXIST")
    assert ca.by_key == {}


@pytest.mark.parametrize("known", [True, False])
async def test_a_captive_portal_does_not_make_an_account_unknown(
    ca: Accounts, old: SoftKey, new: SoftKey, known: bool
) -> None:
    url = ca.has(old)
    ca.faults = {"keyChange": [lost], "newAccount": [portal, portal]}
    error = await failed(ca, old, new, url if known else "")
    assert error.reason == "ACME_ANSWER_MALFORMED"
    ca.faults.clear()
    assert await rolled(ca, old, new, url if known else "") == url


async def test_a_rate_limit_is_not_answered_with_more_questions(
    ca: Accounts, old: SoftKey, new: SoftKey
) -> None:
    url = ca.has(old)
    ca.faults["keyChange"] = [says("rateLimited", 429)]
    error = await failed(ca, old, new, url)
    assert failure_class(error) is FailureClass.RATE_LIMITED
    assert isinstance(error, Unavailable)
    assert error.retry_after == 120.0
    assert ca.seen == ["keyChange"]


async def test_an_sti_ca_without_key_change_says_so(
    ca: Accounts, old: SoftKey, new: SoftKey
) -> None:
    url = ca.has(old)
    del ca.directory["keyChange"]
    assert (await failed(ca, old, new, url)).reason == "ACME_NOT_OFFERED"
    assert ca.seen == []
