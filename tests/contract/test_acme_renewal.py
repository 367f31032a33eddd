"""Renewal information and `replaces` (RFC 9773) at an STI-CA that may mean harm."""

import json
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from kmsd.acme.client import Acme
from kmsd.errors import PeerRefused, Unavailable
from kmsd.failures import FailureClass, failure_class
from kmsd.renewal import RenewalInfo, Window, certificate_id, next_try
from kmsd.settings import Issuer
from tests.hostile_ca import HostileCa, Reply, problem, told
from tests.pebble import HttpsIdentity, SoftKey, https_identity
from tests.unit.sti import Ca, World

TNAUTHLIST = bytes.fromhex("3008a006160431323334")
LEAF = World().leaf().public_bytes(Encoding.DER)
WITHOUT_AKI = Ca.root().certificate.public_bytes(Encoding.DER)
NAME = certificate_id(LEAF)
JANUARY = 1_735_689_600
"""2025-01-01T00:00:00Z"""


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> HttpsIdentity:
    return https_identity(tmp_path_factory.mktemp("https"))


@pytest.fixture
async def ca(identity: HttpsIdentity) -> AsyncIterator[HostileCa]:
    """With renewal information: the first ten days of 2025."""
    async with HostileCa().running(identity) as running:
        running.renewal = suggesting("2025-01-01T00:00:00Z", "2025-01-11T00:00:00Z")
        yield running


@pytest.fixture
async def acme(ca: HostileCa, identity: HttpsIdentity) -> AsyncIterator[Acme]:
    issuer = Issuer(directory=ca.url("directory"), tls_ca=str(identity.ca), timeout=3.0)
    async with Acme("ca", issuer, SoftKey()) as made:
        yield made


def suggesting(start: Any, end: Any, page: object = None, **headers: str) -> Reply:
    window = {"start": start, "end": end, "more": 1}
    return told({"suggestedWindow": window, "explanationURL": page}, 200, **headers)


async def asked(acme: Acme) -> RenewalInfo:
    info = await acme.renewal_info(LEAF)
    assert info is not None
    return info


async def refused(acme: Acme) -> PeerRefused:
    with pytest.raises(PeerRefused) as caught:
        await acme.renewal_info(LEAF)
    return caught.value


async def test_what_is_suggested_is_asked_for_by_name_and_without_a_signature(
    ca: HostileCa, acme: Acme
) -> None:
    ca.renewal = suggesting(
        "2025-01-01T00:00:00Z",
        "2025-01-11T00:00:00Z",
        "https://ca.example/why",
        retry_after="3600",
    )
    window = Window(JANUARY, JANUARY + 10 * 86_400)
    assert await acme.renewal_info(LEAF) == RenewalInfo(window, "https://ca.example/why", 3600)
    assert [request.method for request in ca.asked(f"renewalInfo/{NAME}")] == ["GET"]
    assert ca.asked("newAccount") == ca.asked("newNonce") == []


async def test_an_sti_ca_without_renewal_information_suggests_nothing(
    ca: HostileCa, acme: Acme
) -> None:
    ca.renewal = None
    assert await acme.renewal_info(LEAF) is None
    assert [name for name, _ in ca.seen] == ["directory"]


async def test_a_certificate_without_a_name_is_not_asked_for(ca: HostileCa, acme: Acme) -> None:
    assert certificate_id(WITHOUT_AKI) == ""
    assert await acme.renewal_info(WITHOUT_AKI) is None
    assert [name for name, _ in ca.seen] == ["directory"]


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [
        ("2025-01-01T02:00:00+02:00", "2024-12-31T23:00:00-02:00", (0, 3600)),
        ("2025-01-01T00:00:00.25Z", "2025-01-01T00:00:00.75Z", (0, 1)),
        ("2025-01-01T00:00:00.999999999Z", "2025-01-01T00:00:01.5Z", (0, 2)),
        ("2025-01-01t00:00:00z", "9999-12-31T23:59:59Z", (0, 251_666_611_199)),
    ],
)
async def test_times_are_those_of_rfc_3339(
    ca: HostileCa, acme: Acme, start: str, end: str, window: tuple[int, int]
) -> None:
    ca.renewal = suggesting(start, end)
    found = (await asked(acme)).window
    assert (found.start - JANUARY, found.end - JANUARY) == window


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (None, 21_600, 21_600),
        ("0", 60, 60),
        ("59", 60, 60),
        ("61", 61, 61),
        ("9" * 300, 86_400, 86_400),
        ("soon", 21_600, 21_600),
        (formatdate(time.time() + 7200, usegmt=True), 7000, 7200),
        (formatdate(time.time() - 7200, usegmt=True), 60, 60),
        (formatdate(time.time() + 10**7, usegmt=True), 86_400, 86_400),
    ],
)
async def test_the_next_question_is_when_it_asks_for_it_within_reason(
    ca: HostileCa, acme: Acme, header: str | None, low: int, high: int
) -> None:
    headers = {} if header is None else {"retry-after": header}
    ca.renewal = suggesting("2025-01-01T00:00:00Z", "2025-01-11T00:00:00Z", **headers)
    assert low <= (await asked(acme)).retry_after <= high


@pytest.mark.parametrize(
    "page",
    [None, "", "http://ca.example/why", "javascript:alert(1)", "https://ca.example/\x1b[2J", "x"],
)
async def test_an_explanation_is_a_page_that_may_be_visited_or_none(
    ca: HostileCa, acme: Acme, page: str | None
) -> None:
    ca.renewal = suggesting("2025-01-01T00:00:00Z", "2025-01-11T00:00:00Z", page)
    assert (await asked(acme)).explanation_url == ""


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2025-01-11T00:00:00Z", "2025-01-01T00:00:00Z"),
        ("2025-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
        ("2025-01-01T00:00:00Z", "2025-01-01T01:00:00+01:00"),
        ("2025-01-01T00:00:00", "2025-01-11T00:00:00"),
        ("2025-01-01", "2025-01-11"),
        ("", ""),
        ("now", "\x1b[2Jlater"),
        ("2025-02-30T00:00:00Z", "2025-03-01T00:00:00Z"),
        ("1735689600", "1736553600"),
        ("x" * 100_000, "2025-01-11T00:00:00Z"),
    ],
)
async def test_a_window_that_is_none_is_refused_and_asked_for_later(
    ca: HostileCa, acme: Acme, start: str, end: str
) -> None:
    ca.renewal = suggesting(start, end)
    error = await refused(acme)
    assert error.reason == "ACME_RENEWAL_WINDOW_INVALID"
    assert error.message.isprintable()
    assert len(error.message) < 800
    assert next_try(error, 1) == 21_600


@pytest.mark.parametrize(
    "reply",
    [
        told({}),
        told({"suggestedWindow": None}),
        told({"suggestedWindow": {"start": "2025-01-01T00:00:00Z"}}),
        suggesting(1735689600, 1736553600),
        suggesting("2025-01-01T00:00:00Z", "2025-01-11T00:00:00Z", 7),
        Reply(200, b"<html>"),
        Reply(200, b"[" * 100_000),
        Reply(200, b" " * 300_000),
        Reply(403, b"<html>"),
    ],
    ids=lambda reply: f"{reply.status} {reply.body[:30]!r}",
)
async def test_an_answer_that_makes_no_sense_is_refused(
    ca: HostileCa, acme: Acme, reply: Reply
) -> None:
    ca.renewal = reply
    error = await refused(acme)
    assert error.reason == "ACME_ANSWER_MALFORMED"
    assert failure_class(error) is FailureClass.UNREACHABLE


@pytest.mark.parametrize(
    ("reply", "reason", "pause"),
    [
        (problem("rateLimited", 429, retry_after="600"), "ACME_RATE_LIMITED", 600),
        (problem("serverInternal", 500), "ACME_SERVER_INTERNAL", 60),
        (Reply(breaks_off=True), "ACME_CONNECTION_LOST", 60),
    ],
    ids=["429", "500", "no answer"],
)
async def test_no_answer_is_asked_for_again_soon(
    ca: HostileCa, acme: Acme, reply: Reply, reason: str, pause: int
) -> None:
    ca.renewal = reply
    with pytest.raises(Unavailable) as failed:
        await acme.renewal_info(LEAF)
    assert failed.value.reason == reason
    assert next_try(failed.value, 1) == pause


async def test_a_certificate_the_sti_ca_does_not_know_is_not_found(
    ca: HostileCa, acme: Acme
) -> None:
    ca.renewal = problem("malformed", 404)
    error = await refused(acme)
    assert (error.reason, next_try(error, 1)) == ("ACME_NOT_FOUND", 21_600)


# What an order replaces.


async def test_an_order_says_what_it_replaces_where_there_is_renewal_information(
    ca: HostileCa, acme: Acme
) -> None:
    await acme.new_order(TNAUTHLIST, replaces=NAME)
    ca.renewal = None
    assert ca.asked("newOrder")[0].payload["replaces"] == NAME


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("alreadyReplaced", 409),
        ("malformed", 400),
        ("malformed", 404),
        ("unauthorized", 403),
        ("inventedHere", 409),
    ],
)
async def test_an_old_certificate_never_stands_in_the_way_of_a_new_one(
    ca: HostileCa, acme: Acme, kind: str, status: int
) -> None:
    ca.fails("newOrder", problem(kind, status, "not that one"))
    order = await acme.new_order(TNAUTHLIST, not_after=JANUARY, replaces=NAME)
    assert order.url == ca.url("order")
    first, second = (request.payload for request in ca.asked("newOrder"))
    assert first.pop("replaces") == NAME
    assert second == first


@pytest.mark.parametrize("kind", ["rejectedIdentifier", "rateLimited", "accountDoesNotExist"])
async def test_a_refusal_that_is_not_about_the_old_certificate_is_not_asked_for_twice(
    ca: HostileCa, acme: Acme, kind: str
) -> None:
    ca.fails("newOrder", problem(kind))
    with pytest.raises((PeerRefused, Unavailable)):
        await acme.new_order(TNAUTHLIST, replaces=NAME)
    assert len(ca.asked("newOrder")) == 1


async def test_an_order_that_is_refused_either_way_is_refused_in_the_last_words(
    ca: HostileCa, acme: Acme
) -> None:
    ca.fails("newOrder", problem("alreadyReplaced", 409, "first"), problem("malformed", 400, "no"))
    with pytest.raises(PeerRefused) as caught:
        await acme.new_order(TNAUTHLIST, replaces=NAME)
    assert json.loads(caught.value.problem)["detail"] == "no"
