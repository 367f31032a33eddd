"""The ACME client against an STI-CA that departs from the RFCs, fails, or means harm."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kmsd.acme import problems, transport
from kmsd.acme.client import Acme
from kmsd.acme.messages import OrderStatus
from kmsd.errors import KmsdError, Misconfigured, PeerRefused, Unavailable
from kmsd.jose import b64url, jwk
from kmsd.settings import Issuer
from tests import proxy
from tests.hostile_ca import PEM, HostileCa, Reply, problem, told
from tests.pebble import HttpsIdentity, SoftKey, https_identity

TNAUTHLIST = bytes.fromhex("3008a006160431323334")  # SPC 1234
CSR = SoftKey().csr()
LONG = "https://ca.example/" + "x" * 2048


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> HttpsIdentity:
    return https_identity(tmp_path_factory.mktemp("https"))


@pytest.fixture
async def ca(identity: HttpsIdentity) -> AsyncIterator[HostileCa]:
    async with HostileCa().running(identity) as running:
        yield running


@pytest.fixture
async def acme(ca: HostileCa, identity: HttpsIdentity) -> AsyncIterator[Acme]:
    async with client(ca, identity) as made:
        yield made


def client(
    ca: HostileCa, identity: HttpsIdentity, mac_key: bytes | None = None, **different: Any
) -> Acme:
    given: dict[str, Any] = {
        "directory": ca.url("directory"),
        "tls_ca": str(identity.ca),
        "timeout": 3.0,
        "poll_limit": 3.0,
    }
    return Acme("ca", Issuer(**(given | different)), SoftKey(), mac_key=mac_key)


async def enrolled(acme: Acme) -> tuple[str, str]:
    order = await acme.new_order(TNAUTHLIST)
    await acme.authorize(order.url, "spc.token.jwt")
    await acme.finalize(order.url, CSR)
    chain = await acme.collect(order.url)
    return chain.pem, chain.x5u


async def refused_order(acme: Acme) -> KmsdError:
    with pytest.raises((PeerRefused, Unavailable)) as refused:
        await acme.new_order(TNAUTHLIST)
    error: KmsdError = refused.value
    return error


# What RFC 9448 makes of an order, and how the field departs from it.


async def test_an_sti_ca_by_the_rfcs_gets_what_they_say(ca: HostileCa, acme: Acme) -> None:
    assert await enrolled(acme) == (PEM, "")
    (order,) = ca.asked("newOrder")
    wanted = {"type": "TNAuthList", "value": b64url(TNAUTHLIST)}
    assert order.payload == {"identifiers": [wanted]}
    (answer,) = ca.asked("challenge")
    assert answer.payload == {"tkauth": "spc.token.jwt"}
    (finalize,) = ca.asked("finalize")
    assert finalize.payload == {"csr": b64url(CSR)}
    assert ca.asked("certificate")[0].headers["accept"] == "application/pem-certificate-chain"
    assert all(request.payload is None for request in ca.asked("order"))
    assert "kid" not in ca.asked("newAccount")[0].protected["jwk"]


async def test_peeringhubs_ways(ca: HostileCa, identity: HttpsIdentity) -> None:
    ca.signs_last_dot, ca.head_allowed, ca.account_body_empty = False, False, True
    ca.chain.headers["content-type"] = "pem-certificate-chain"
    async with client(ca, identity, preset="peeringhub") as acme:
        assert await enrolled(acme) == (PEM, "")
    (order,) = ca.asked("newOrder")
    assert order.payload["identifiers"][0]["value"] == base64.b64encode(TNAUTHLIST).decode()
    assert ca.asked("challenge")[0].payload == {"atc": "spc.token.jwt"}
    assert ca.asked("newAccount")[0].protected["jwk"]["kid"] == "kmsd"
    assert len(ca.asked("account")) == 1
    assert len(ca.asked("authorization")) == 1, "the order is polled, not the authorization"


async def test_martinis_external_account_is_bound_to_the_same_jwk(
    ca: HostileCa, identity: HttpsIdentity
) -> None:
    ca.directory_meta = {"externalAccountRequired": True}
    async with client(ca, identity, b"k" * 32, preset="martini", eab_key_id="us") as acme:
        await acme.ensure_account()
    (asked,) = ca.asked("newAccount")
    binding = asked.payload["externalAccountBinding"]
    inner = json.loads(base64.urlsafe_b64decode(binding["payload"] + "=="))
    assert inner == asked.protected["jwk"]
    header = json.loads(base64.urlsafe_b64decode(binding["protected"] + "=="))
    assert header == {"alg": "HS256", "kid": "us", "url": ca.url("newAccount")}


async def test_the_x5u_of_the_order_wins_over_the_header(ca: HostileCa, acme: Acme) -> None:
    ca.chain.headers["X-Shaken-Certificate-Location"] = "https://cr.example/header.pem"
    assert (await enrolled(acme))[1] == "https://cr.example/header.pem"
    ca.issue(x5u="https://cr.example/order.pem")
    assert (await acme.collect(ca.url("order"))).x5u == "https://cr.example/order.pem"


@pytest.mark.parametrize(
    "x5u",
    [
        "http://cr.example/a.pem",
        "https://u:p@cr.example/",
        "https://cr.example/a.pem?id=1",
        "https://cr.example/a.pem#leaf",
        "https://cr.example",
        "nonsense",
    ],
)
async def test_an_x5u_nobody_may_fetch_is_none(ca: HostileCa, acme: Acme, x5u: str) -> None:
    ca.issue(x5u=x5u)
    assert (await acme.collect(ca.url("order"))).x5u == ""


async def test_validity_is_asked_for_in_rfc_3339_and_replaces_not_without_ari(
    ca: HostileCa, acme: Acme
) -> None:
    await acme.new_order(TNAUTHLIST, not_before=0, not_after=1_900_000_000, replaces="aki.serial")
    (order,) = ca.asked("newOrder")
    assert order.payload["notBefore"] == "1970-01-01T00:00:00Z"
    assert order.payload["notAfter"] == "2030-03-17T17:46:40Z"
    assert "replaces" not in order.payload


# Repeating.


async def test_an_answered_challenge_is_waited_for_and_costs_no_second_token(
    ca: HostileCa, acme: Acme
) -> None:
    async def token() -> str:
        raise AssertionError("no token is needed")

    ca.challenge["status"] = "processing"
    ca.fails("authorization", *(told(processing(ca), retry_after="0") for _ in range(2)))
    ca.authorization_status = "valid"
    ca.fails("order", told(order(ca, "pending")))
    ca.order["status"] = "ready"
    assert (await acme.authorize(ca.url("order"), token)).status is OrderStatus.READY
    assert ca.asked("challenge") == []


async def test_a_token_is_fetched_once_and_late(ca: HostileCa, acme: Acme) -> None:
    fetched = []

    async def token() -> str:
        fetched.append(len(ca.asked("authorization")))
        return "spc.token.jwt"

    await acme.authorize(ca.url("order"), token)
    await acme.authorize(ca.url("order"), token)
    assert fetched == [1]


@pytest.mark.parametrize("status", ["processing", "valid"])
async def test_a_finalized_order_is_not_finalized_again(
    ca: HostileCa, acme: Acme, status: str
) -> None:
    ca.order["status"] = status
    await acme.finalize(ca.url("order"), CSR)
    assert ca.asked("finalize") == []


async def test_a_new_order_whose_reply_was_lost_is_repeated_by_calling_again(
    ca: HostileCa, acme: Acme
) -> None:
    ca.fails("newOrder", Reply(breaks_off=True))
    error = await refused_order(acme)
    assert (type(error), error.reason) == (Unavailable, "ACME_CONNECTION_LOST")
    assert (await acme.new_order(TNAUTHLIST)).url == ca.url("order")


async def test_a_refusal_leaves_the_client_as_it_was(ca: HostileCa, acme: Acme) -> None:
    ca.fails("newOrder", problem("malformed"), Reply(500), Reply(200, b"<html>"))
    for _ in range(3):
        await refused_order(acme)
    assert (await enrolled(acme))[0] == PEM


# Nonces.


async def test_ten_rejected_nonces_fail_no_enrollment(ca: HostileCa, acme: Acme) -> None:
    ca.fails("newOrder", *(problem("badNonce") for _ in range(10)))
    assert (await acme.new_order(TNAUTHLIST)).url == ca.url("order")
    assert len(ca.asked("newNonce")) == 1, "each reply has a fresh nonce"


async def test_rejecting_every_nonce_ends_within_the_budget(ca: HostileCa, acme: Acme) -> None:
    ca.fails("newOrder", *(problem("badNonce") for _ in range(100)))
    error = await refused_order(acme)
    assert (type(error), error.reason) == (Unavailable, "ACME_NONCE_BUDGET")
    assert len(ca.asked("newOrder")) == transport.NONCE_BUDGET + 1


async def test_an_error_without_a_nonce_costs_a_new_one(ca: HostileCa, acme: Acme) -> None:
    bad = problem("badNonce")
    bad.nonce = False
    ca.fails("newOrder", bad)
    await acme.new_order(TNAUTHLIST)
    assert len(ca.asked("newNonce")) == 2


async def test_a_nonce_is_fetched_with_get_where_head_is_not_allowed(
    ca: HostileCa, acme: Acme
) -> None:
    ca.head_allowed = False
    await acme.new_order(TNAUTHLIST)
    assert [request.method for request in ca.asked("newNonce")] == ["HEAD", "GET"]


@pytest.mark.parametrize("nonce", ["", "with space", "x" * 600, "pad=="])
async def test_a_nonce_that_is_none_is_ignored(ca: HostileCa, acme: Acme, nonce: str) -> None:
    bad = Reply(headers={"replay-nonce": nonce}, nonce=False)
    ca.fails("newNonce", bad, bad)
    error = await refused_order(acme)
    assert (type(error), error.reason) == (PeerRefused, "ACME_ANSWER_MALFORMED")


# What the STI-CA says goes to the operator.


async def test_a_refusal_keeps_the_document_word_for_word_with_subproblems(
    ca: HostileCa, acme: Acme
) -> None:
    body = (
        b'{ "type":"urn:ietf:params:acme:error:rejectedIdentifier",\n "detail":"SPC 1234\\u001b[2J '
        b'is not yours", "subproblems":[{"type":"x","identifier":{"value":"1"}}], "more":[1, 2] }'
    )
    ca.fails("newOrder", Reply(403, body, {"content-type": "application/problem+json"}))
    error = await refused_order(acme)
    assert isinstance(error, PeerRefused)
    assert (error.reason, error.peer) == ("ACME_REJECTED_IDENTIFIER", "sti-ca")
    assert error.problem == body.decode()
    assert error.message == "STI-CA ca refused newOrder: SPC 1234 [2J is not yours."
    assert error.next_step


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unauthorized", "ACME_UNAUTHORIZED"),
        ("badCSR", "ACME_BAD_CSR"),
        ("malformed", "ACME_MALFORMED"),
        ("accountDoesNotExist", "ACME_ACCOUNT_DOES_NOT_EXIST"),
        ("userActionRequired", "ACME_USER_ACTION_REQUIRED"),
        ("inventedHere", "ACME_REFUSED"),
    ],
)
async def test_each_error_type_has_its_reason(
    ca: HostileCa, acme: Acme, kind: str, reason: str
) -> None:
    ca.fails("newOrder", problem(kind, 400, "so it is"))
    error = await refused_order(acme)
    assert (type(error), error.reason) == (PeerRefused, reason)


async def test_a_page_to_visit_is_the_next_step(ca: HostileCa, acme: Acme) -> None:
    visit = {"type": problems.URN + "userActionRequired", "instance": "https://ca.example/terms"}
    ca.fails("newOrder", told(visit, 403))
    assert "https://ca.example/terms" in (await refused_order(acme)).next_step


async def test_a_bad_spc_token_is_reported_from_the_authorization(
    ca: HostileCa, acme: Acme
) -> None:
    document = {"type": problems.URN + "unauthorized", "detail": "fingerprint differs"}
    ca.after_answer = [lambda: ca.reject(document)]
    with pytest.raises(PeerRefused) as refused:
        await acme.authorize(ca.url("order"), "spc.token.jwt")
    assert refused.value.reason == "ACME_ORDER_INVALID"
    assert "fingerprint differs" in refused.value.message
    assert json.loads(refused.value.problem) == document
    assert "fingerprint_kind" in refused.value.next_step
    assert "spc.token.jwt" not in repr(refused.value) + refused.value.problem
    with pytest.raises(PeerRefused):
        await acme.authorize(ca.url("order"), "spc.token.jwt")
    assert len(ca.asked("challenge")) == 1, "a dead order is not answered again"


async def test_an_authorization_that_died_ends_an_order_that_still_looks_alive(
    ca: HostileCa, acme: Acme
) -> None:
    ca.authorization_status = "revoked"
    with pytest.raises(PeerRefused) as refused:
        await acme.authorize(ca.url("order"), "spc.token.jwt")
    assert refused.value.reason == "ACME_ORDER_INVALID"


@pytest.mark.parametrize("step", ["finalize", "collect"])
async def test_an_order_that_died_says_why_at_every_step(
    ca: HostileCa, acme: Acme, step: str
) -> None:
    ca.order |= {"status": "invalid", "error": {"type": problems.URN + "badCSR", "detail": "no O"}}
    ca.fails("authorization", Reply(404))
    with pytest.raises(PeerRefused, match="no O") as refused:
        await (acme.finalize(ca.url("order"), CSR) if step == "finalize" else collect(ca, acme))
    assert refused.value.reason == "ACME_ORDER_INVALID"
    assert refused.value.metadata["error"] == "badCSR"


async def test_a_server_without_tkauth_is_not_asked_twice(ca: HostileCa, acme: Acme) -> None:
    ca.challenge["tkauth-type"] = "other"
    with pytest.raises(PeerRefused, match="http-99, tkauth-01") as refused:
        await acme.authorize(ca.url("order"), "spc.token.jwt")
    assert refused.value.reason == "ACME_NO_CHALLENGE"
    assert ca.asked("challenge") == []


async def test_a_deactivated_account_is_not_used(ca: HostileCa, acme: Acme) -> None:
    ca.account_status = "deactivated"
    error = await refused_order(acme)
    assert error.reason == "ACME_ACCOUNT_UNUSABLE"


async def test_what_the_directory_lacks_is_not_offered(ca: HostileCa, acme: Acme) -> None:
    names = ("newNonce", "newAccount", "newOrder")
    ca.fails("directory", told({name: ca.url(name) for name in names}))
    with pytest.raises(PeerRefused, match="keyChange") as refused:
        await acme.roll_key(SoftKey())
    assert refused.value.reason == "ACME_NOT_OFFERED"
    with pytest.raises(PeerRefused, match="revokeCert"):
        await acme.revoke(b"", 0)


async def test_a_key_that_may_not_be_rolled_to_stays_out(ca: HostileCa, acme: Acme) -> None:
    await acme.ensure_account()
    ca.fails("keyChange", problem("badPublicKey", 400, "weak"))
    ca.fails("newAccount", problem("accountDoesNotExist"))
    with pytest.raises(PeerRefused, match="weak") as refused:
        await acme.roll_key(SoftKey())
    assert refused.value.reason == "ACME_BAD_PUBLIC_KEY"
    assert ca.asked("newAccount")[1].payload == {"onlyReturnExisting": True}


async def test_revocation_by_account_says_which_certificate_and_why(
    ca: HostileCa, acme: Acme
) -> None:
    ca.fails("revokeCert", Reply(200), problem("alreadyRevoked"))
    await acme.revoke(b"DER", 4)
    await acme.revoke(b"DER", 4)
    assert ca.asked("revokeCert")[0].payload == {"certificate": b64url(b"DER"), "reason": 4}


async def test_revocation_by_the_certificates_own_key_needs_no_account(
    ca: HostileCa, acme: Acme
) -> None:
    ca.fails("revokeCert", Reply(200))
    own = SoftKey()
    await acme.revoke(b"DER", 1, own)
    (asked,) = ca.asked("revokeCert")
    assert asked.protected["jwk"] == jwk(own.public_key)
    assert ca.asked("newAccount") == []


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("badRevocationReason", 400, "ACME_BAD_REVOCATION_REASON"),
        ("unauthorized", 403, "ACME_UNAUTHORIZED"),
        ("malformed", 404, "ACME_NOT_FOUND"),
    ],
)
async def test_a_refused_revocation_says_what_to_do_instead(
    ca: HostileCa, acme: Acme, kind: str, status: int, reason: str
) -> None:
    ca.fails("revokeCert", problem(kind, status, "no"))
    with pytest.raises(PeerRefused) as refused:
        await acme.revoke(b"DER", 4)
    assert (refused.value.reason, refused.value.metadata["resource"]) == (reason, "revokeCert")
    assert refused.value.next_step
    assert "token" not in refused.value.next_step


async def test_a_revocation_whose_reply_was_lost_may_be_repeated(ca: HostileCa, acme: Acme) -> None:
    ca.fails("revokeCert", Reply(breaks_off=True), problem("alreadyRevoked"))
    with pytest.raises(Unavailable) as lost:
        await acme.revoke(b"DER", 4)
    assert lost.value.reason == "ACME_CONNECTION_LOST"
    await acme.revoke(b"DER", 4)


# Waiting.


@pytest.mark.parametrize(
    "reply",
    [
        problem("rateLimited", 429, "too many", retry_after="120"),
        problem("rateLimited", 403, "too many", retry_after="120"),
        Reply(429, b"slow down", {"retry-after": "120"}),
        Reply(503, b"<html>", {"retry-after": "120"}),
        problem("serverInternal", 500, retry_after="120"),
    ],
    ids=["429", "403", "429 no document", "503", "500"],
)
async def test_who_asks_for_patience_gets_it(ca: HostileCa, acme: Acme, reply: Reply) -> None:
    ca.fails("newOrder", reply)
    error = await refused_order(acme)
    assert isinstance(error, Unavailable)
    assert error.retry_after == 120.0


async def test_retry_after_is_honoured_while_polling(ca: HostileCa, acme: Acme) -> None:
    ca.issue()
    ca.fails("order", told(order(ca, "processing"), retry_after="1"))
    loop = asyncio.get_running_loop()
    started = loop.time()
    await acme.collect(ca.url("order"))
    assert loop.time() - started >= 1.0


async def test_waiting_longer_than_the_limit_is_left_to_the_caller(
    ca: HostileCa, acme: Acme
) -> None:
    ca.order["status"] = "processing"
    ca.fails("order", told(order(ca, "processing"), retry_after="3600"))
    with pytest.raises(Unavailable) as late:
        await acme.collect(ca.url("order"))
    assert (late.value.reason, late.value.retry_after) == ("ACME_POLL_LIMIT", 3600.0)
    assert len(ca.asked("order")) == 1


async def test_an_order_that_never_ends_is_left_after_the_limit(
    ca: HostileCa, identity: HttpsIdentity
) -> None:
    ca.order["status"] = "processing"
    async with client(ca, identity, poll_limit=1.2) as acme:
        with pytest.raises(Unavailable) as late:
            await acme.collect(ca.url("order"))
    assert late.value.reason == "ACME_POLL_LIMIT"
    assert len(ca.asked("order")) == 2


# Answers that are none.


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"<html>Sign in</html>", {"content-type": "text/html"}),
        Reply(403, b"<html>Blocked by proxy</html>", {"content-type": "text/html"}),
        Reply(201, b""),
        Reply(201, b"null"),
        Reply(201, b"[" * 100_000),
        Reply(201, b'{"deep":' + b"[" * 100_000),
        Reply(201, b"\xff\xfe"),
        Reply(201, b'{"status":"pending"}'),
        Reply(201, b'{"status":"who knows","finalize":"https://ca.example/"}'),
        Reply(201, b'{"status":1,"finalize":"https://ca.example/"}'),
        Reply(201, b"{}" + b" " * 300_000),
        Reply(201, b"{}", {"content-encoding": "gzip"}),
    ],
    ids=lambda reply: f"{reply.status} {reply.body[:20]!r}",
)
async def test_an_answer_that_makes_no_sense_is_refused(
    ca: HostileCa, acme: Acme, reply: Reply
) -> None:
    reply.headers["location"] = ca.url("order")
    ca.fails("newOrder", reply)
    error = await refused_order(acme)
    assert (type(error), error.reason) == (PeerRefused, "ACME_ANSWER_MALFORMED")
    assert len(error.message) < 500


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "/order",
        "http://127.0.0.1/order",
        "https://u:p@ca/",
        "https://[",
        "https://",
        "x",
        LONG,
    ],
)
async def test_an_order_without_an_https_url_is_refused(
    ca: HostileCa, acme: Acme, location: str | None
) -> None:
    headers = {} if location is None else {"location": location}
    ca.fails("newOrder", told(order(ca, "pending"), 201, **headers))
    assert (await refused_order(acme)).reason == "ACME_ANSWER_MALFORMED"


@pytest.mark.parametrize("member", ["finalize", "certificate", "authorizations"])
async def test_urls_handed_out_must_be_https(ca: HostileCa, acme: Acme, member: str) -> None:
    plain = f"http://127.0.0.1:{ca.port}/{member}"
    steps: dict[str, tuple[str, Callable[[], Awaitable[object]]]] = {
        "finalize": ("ready", lambda: acme.finalize(ca.url("order"), CSR)),
        "certificate": ("valid", lambda: acme.collect(ca.url("order"))),
        "authorizations": ("pending", lambda: acme.authorize(ca.url("order"), "t")),
    }
    status, step = steps[member]
    ca.order |= {"status": status, member: [plain] if member == "authorizations" else plain}
    with pytest.raises(PeerRefused, match="no https URL") as refused:
        await step()
    assert refused.value.reason == "ACME_ANSWER_MALFORMED"


@pytest.mark.parametrize("resource", ["directory", "newNonce", "newOrder"])
async def test_a_redirect_is_not_followed(ca: HostileCa, acme: Acme, resource: str) -> None:
    away = Reply(307, headers={"location": ca.url("elsewhere")}, nonce=False)
    ca.fails(resource, away)
    error = await refused_order(acme)
    assert (type(error), error.reason) == (PeerRefused, "ACME_REDIRECT")
    assert ca.asked("elsewhere") == []


@pytest.mark.parametrize(
    "chain",
    [
        Reply(200, PEM.encode(), {"content-type": "text/html"}),
        Reply(200, PEM.encode()),
        Reply(200, b"", {"content-type": "application/pem-certificate-chain"}),
        Reply(200, PEM.encode() * 11, {"content-type": "application/pem-certificate-chain"}),
    ],
    ids=["html", "no type", "empty", "too long"],
)
async def test_a_chain_that_is_none_is_refused(ca: HostileCa, acme: Acme, chain: Reply) -> None:
    ca.issue()
    ca.chain = chain
    with pytest.raises(PeerRefused) as refused:
        await acme.collect(ca.url("order"))
    assert refused.value.reason == "ACME_ANSWER_MALFORMED"


@pytest.mark.parametrize("media_type", ["application/pem-certificate-chain", "text/plain"])
async def test_a_private_key_in_the_chain_gets_no_further_not_even_in_the_error(
    ca: HostileCa, acme: Acme, media_type: str
) -> None:
    ca.issue()
    ca.chain.headers["content-type"] = media_type
    ca.chain.body += b"-----BEGIN EC PRIVATE KEY-----\nSECRET\n-----END EC PRIVATE KEY-----\n"
    with pytest.raises(PeerRefused) as refused:
        await acme.collect(ca.url("order"))
    assert "SECRET" not in str(refused.value) + refused.value.problem


async def test_an_sti_ca_is_reached_through_the_proxy_of_the_environment(
    ca: HostileCa, identity: HttpsIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy.running() as between:
        monkeypatch.setenv("HTTPS_PROXY", between.url)
        async with client(ca, identity) as acme:
            assert await enrolled(acme) == (PEM, "")
        assert set(between.tunnels) == {f"127.0.0.1:{ca.port}"}


# No answer at all.


async def test_an_answer_that_drips_ends_at_the_timeout(
    ca: HostileCa, identity: HttpsIdentity
) -> None:
    ca.fails("directory", Reply(200, b" " * 1000, pause=0.05))
    async with client(ca, identity, timeout=0.4) as acme:
        error = await refused_order(acme)
    assert (type(error), error.reason) == (Unavailable, "ACME_TIMEOUT")


async def test_nobody_there_is_unavailable(identity: HttpsIdentity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    issuer = Issuer(directory=f"https://127.0.0.1:{port}/", tls_ca=str(identity.ca))
    async with Acme("ca", issuer, SoftKey()) as acme:
        error = await refused_order(acme)
    assert (type(error), error.reason) == (Unavailable, "ACME_UNREACHABLE")
    assert error.next_step


async def test_who_hangs_up_at_once_may_not_admit_this_host(identity: HttpsIdentity) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        issuer = Issuer(directory=f"https://127.0.0.1:{port}/", tls_ca=str(identity.ca))
        async with Acme("ca", issuer, SoftKey()) as acme:
            error = await refused_order(acme)
    assert (type(error), error.reason) == (Unavailable, "ACME_UNREACHABLE")
    assert "admits this host's address" in error.next_step


async def test_no_https_there_is_a_tls_failure(identity: HttpsIdentity) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ready\r\n" * 10)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        issuer = Issuer(directory=f"https://127.0.0.1:{port}/", tls_ca=str(identity.ca))
        async with Acme("ca", issuer, SoftKey()) as acme:
            error = await refused_order(acme)
    assert (type(error), error.reason) == (Unavailable, "ACME_TLS_FAILED")


async def test_without_a_ca_file_the_systems_trust_is_what_counts(
    ca: HostileCa, identity: HttpsIdentity
) -> None:
    async with client(ca, identity, tls_ca="") as acme:
        error = await refused_order(acme)
    assert (type(error), error.reason) == (Unavailable, "ACME_TLS_FAILED")
    assert "the system's trust store" in error.message


# Configuration.


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/directory", "http://localhost/", "directory", "", "https://a:b@c/"]
)
def test_only_https_is_spoken(url: str) -> None:
    with pytest.raises(Misconfigured) as wrong:
        Acme("ca", Issuer(directory=url), SoftKey())
    assert wrong.value.reason == "ACME_DIRECTORY_NOT_HTTPS"


@pytest.mark.parametrize("content", [None, b"", b"no PEM"])
def test_a_ca_file_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Misconfigured, match=str(file)) as wrong:
        Acme("ca", Issuer(directory="https://ca.example/", tls_ca=str(file)), SoftKey())
    assert wrong.value.reason == "TLS_CA_UNREADABLE"


def order(ca: HostileCa, status: str) -> dict[str, Any]:
    return {
        "status": status,
        "authorizations": [ca.url("authorization")],
        "finalize": ca.url("finalize"),
    }


def processing(ca: HostileCa) -> dict[str, Any]:
    challenge = {"type": "tkauth-01", "url": ca.url("challenge"), "status": "processing"}
    return {"status": "pending", "challenges": [challenge]}


async def collect(ca: HostileCa, acme: Acme) -> None:
    await acme.collect(ca.url("order"))
