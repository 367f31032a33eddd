"""Every switch that breaks something breaks that, and can be switched off again."""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import get_args

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from kmsd.lab import Lab
from kmsd.lab.switches import ChainFault
from tests.lab.parties import (
    DER,
    TN_AUTH_LIST,
    Acme,
    Enrolled,
    Subscriber,
    enroll,
    make_csr,
    new_key,
    problem,
    web,
)


@pytest.mark.parametrize(
    ("fault", "status"), [("unavailable", 503), ("error", 500), ("missing", 404)]
)
@pytest.mark.parametrize("role", ["pa", "ca", "cr"])
def test_a_role_answers_with_an_error(
    lab: Lab, client: httpx.Client, role: str, fault: str, status: int
) -> None:
    url = {"pa": lab.facts.crl_url, "ca": lab.facts.ca_directory, "cr": lab.facts.cr_url}[role]
    lab.set(**{role: fault})
    answer = client.get(url)
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) == (fault == "unavailable")
    last = lab.requests()[-1]
    assert (last["role"], last["status"], last["fault"]) == (role, status, fault)


def test_a_fault_can_be_for_one_path_and_a_few_times(lab: Lab, client: httpx.Client) -> None:
    lab.set(ca="error", fault_path="nonce", fault_times=2)
    assert client.get(lab.facts.ca_directory).status_code == 200
    url = client.get(lab.facts.ca_directory).json()["newNonce"]
    assert [client.get(url).status_code for _ in range(4)] == [500, 500, 204, 204]


def test_the_connection_is_reset(lab: Lab, client: httpx.Client) -> None:
    lab.set(ca="reset")
    with pytest.raises(httpx.TransportError):
        client.get(lab.facts.ca_directory)
    assert lab.requests()[-1]["status"] == 0


def test_a_reply_is_lost_after_the_deed(lab: Lab, acme: Acme) -> None:
    before = lab.counts()["orders"]
    lab.set(ca="reply_lost", fault_path="new-order")
    with pytest.raises(httpx.TransportError):
        acme.order()
    assert lab.counts()["orders"] == before + 1


def test_a_stalled_request_gets_no_answer(lab: Lab) -> None:
    lab.set(ca="stall", stall_seconds=30)
    with web(lab.facts, timeout=0.2) as client, pytest.raises(httpx.ReadTimeout):
        client.get(lab.facts.ca_directory)
    lab.set(stall_seconds=0.1)
    with web(lab.facts) as client, pytest.raises(httpx.TransportError):
        client.get(lab.facts.ca_directory)


def test_a_slow_reply_is_right(lab: Lab, client: httpx.Client) -> None:
    lab.set(ca="slow", stall_seconds=0.2)
    start = time.monotonic()
    assert client.get(lab.facts.ca_directory).json()["newNonce"]
    assert time.monotonic() - start >= 0.2


def test_a_web_page_comes_in_place_of_json(lab: Lab, client: httpx.Client) -> None:
    lab.set(pa="html")
    answer = client.get(lab.facts.crl_url)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html")


def test_a_redirect_leads_to_where_followers_are_written_down(
    lab: Lab, client: httpx.Client
) -> None:
    lab.set(pa="redirect")
    answer = client.get(lab.facts.crl_url)
    assert (answer.status_code, answer.content) == (302, b"")
    assert not [each for each in lab.requests() if each["role"] == "elsewhere"]
    client.get(lab.facts.crl_url, follow_redirects=True)
    assert [each for each in lab.requests() if each["role"] == "elsewhere"]


def test_an_oversized_body_goes_on(lab: Lab, client: httpx.Client) -> None:
    lab.set(pa="oversized", oversized_bytes=1024 * 1024)
    assert len(client.get(lab.facts.crl_url).content) > 1_000_000


def test_a_corrupt_reply_differs_in_one_bit(lab: Lab, client: httpx.Client) -> None:
    url = f"{lab.facts.pa_url}/download/v1/certificate/certificateId_1.crt"
    good = client.get(url).content
    lab.set(pa="corrupt")
    bad = client.get(url).content
    assert len([1 for left, right in zip(good, bad, strict=True) if left != right]) == 1


def test_an_order_is_rate_limited_with_retry_after(lab: Lab, acme: Acme) -> None:
    lab.set(order="rate_limited", retry_after=7)
    answer = acme.order()
    assert (answer.status_code, problem(answer)) == (429, "rateLimited")
    assert answer.headers["Retry-After"] == "7"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_any_role_limits_the_rate_and_says_how_long_in_either_form(
    lab: Lab, client: httpx.Client, form: str
) -> None:
    lab.set(pa="rate_limited", ca="rate_limited", retry_after=90, retry_after_form=form)
    for url in (lab.facts.ca_directory, lab.facts.crl_url):
        answer = client.get(url)
        assert answer.status_code == 429
        later = answer.headers["Retry-After"]
        if form == "date":
            sent, until = (parsedate_to_datetime(d) for d in (answer.headers["Date"], later))
            assert 85 <= (until - sent).total_seconds() <= 95
        else:
            assert later == "90"


def test_a_response_is_refused_at_once_and_may_be_given_again(
    lab: Lab, acme: Acme, subscriber: Subscriber
) -> None:
    order = acme.order().json()
    lab.set(order="challenge_malformed")
    (challenge,) = acme.post(order["authorizations"][0], None).json()["challenges"]
    refused = acme.post(challenge["url"], {"tkauth": subscriber.token(acme.key)})
    assert (refused.status_code, problem(refused)) == (400, "malformed")
    lab.set(order="")
    assert acme.answer(order, subscriber.token(acme.key))["status"] == "valid"


def test_the_sti_ca_may_not_get_to_the_tokens_x5u(
    lab: Lab, acme: Acme, subscriber: Subscriber
) -> None:
    lab.set(order="challenge_unreachable")
    challenge = acme.answer(acme.order().json(), subscriber.token(acme.key))
    assert challenge["status"] == "invalid"
    assert challenge["error"]["type"].endswith(":connection")


def test_a_good_token_is_refused_by_switch(lab: Lab, acme: Acme, subscriber: Subscriber) -> None:
    lab.set(order="challenge_refused")
    challenge = acme.answer(acme.order().json(), subscriber.token(acme.key))
    assert challenge["status"] == "invalid"
    assert "rule" not in challenge["error"]


def test_a_good_csr_is_refused_or_leads_nowhere_by_switch(
    lab: Lab, acme: Acme, subscriber: Subscriber
) -> None:
    placed = acme.order()
    acme.answer(placed.json(), subscriber.token(acme.key))
    lab.set(order="bad_csr")
    assert problem(acme.finalize(placed.json(), make_csr(new_key()))) == "badCSR"
    lab.set(order="invalid")
    ended = acme.finalize(placed.json(), make_csr(new_key())).json()
    assert ended["status"] == "invalid"
    assert ended["error"]["type"].endswith(":serverInternal")


def extension(enrolled: Enrolled, oid: x509.ObjectIdentifier) -> x509.Extension[x509.ExtensionType]:
    return enrolled.leaf.extensions.get_extension_for_oid(oid)


def lacks(oid: x509.ObjectIdentifier) -> Callable[[Enrolled], bool]:
    return lambda enrolled: oid not in {each.oid for each in enrolled.leaf.extensions}


def policies(enrolled: Enrolled) -> list[str]:
    value = enrolled.leaf.extensions.get_extension_for_class(x509.CertificatePolicies).value
    return [each.policy_identifier.dotted_string for each in value]


def point(enrolled: Enrolled) -> x509.DistributionPoint:
    points = enrolled.leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (only,) = list[x509.DistributionPoint](points)
    return only


def issued_by_the_first_other(enrolled: Enrolled) -> bool:
    return enrolled.chain[1].subject.rfc4514_string().find("Other") > 0


BROKEN: dict[str, Callable[[Enrolled], bool]] = {
    "": lambda e: len(e.chain) == 2 and e.leaf.public_key() == e.key.public_key(),
    "foreign_ca": issued_by_the_first_other,
    "other_key": lambda e: e.leaf.public_key() != e.key.public_key(),
    "wrong_spc": lambda e: b"0000" in extension(e, TN_AUTH_LIST).value.public_bytes(),
    "two_spcs": lambda e: len(extension(e, TN_AUTH_LIST).value.public_bytes()) == 18,
    "no_tnauthlist": lacks(TN_AUTH_LIST),
    "critical_tnauthlist": lambda e: extension(e, TN_AUTH_LIST).critical,
    "expired": lambda e: e.leaf.not_valid_after_utc.timestamp() < time.time(),
    "not_yet_valid": lambda e: e.leaf.not_valid_before_utc.timestamp() > time.time(),
    "no_policy": lacks(ExtensionOID.CERTIFICATE_POLICIES),
    "wrong_policy": lambda e: not policies(e)[0].startswith("2.16.840.1.114569.1.1."),
    "two_policies": lambda e: len(policies(e)) == 2,
    "key_usage": lambda e: (
        e.leaf.extensions.get_extension_for_class(x509.KeyUsage).value.content_commitment
    ),
    "no_key_usage": lacks(ExtensionOID.KEY_USAGE),
    "ca_true": lambda e: e.leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca,
    "no_basic_constraints": lacks(ExtensionOID.BASIC_CONSTRAINTS),
    "no_crldp": lacks(ExtensionOID.CRL_DISTRIBUTION_POINTS),
    "crldp_without_issuer": lambda e: point(e).crl_issuer is None,
    "wrong_crldp": lambda e: "no/crl" in (point(e).full_name or [])[0].value,
    "no_ski": lacks(ExtensionOID.SUBJECT_KEY_IDENTIFIER),
    "no_aki": lacks(ExtensionOID.AUTHORITY_KEY_IDENTIFIER),
    "extra_extension": lambda e: bool(extension(e, ExtensionOID.EXTENDED_KEY_USAGE)),
    "subject_without_spc": lambda e: "SHAKEN 1234" not in e.leaf.subject.rfc4514_string(),
    "subject_without_country": lambda e: (
        not e.leaf.subject.get_attributes_for_oid(NameOID.COUNTRY_NAME)
    ),
    "short_serial": lambda e: e.leaf.serial_number.bit_length() <= 32,
    "leaf_last": lambda e: e.chain[1].public_key() == e.key.public_key(),
    "no_intermediate": lambda e: len(e.chain) == 1,
    "private_key": lambda e: b"PRIVATE KEY" in e.download.content,
}


def test_every_chain_fault_has_a_test() -> None:
    assert set(BROKEN) | {"empty", "garbage"} == set(get_args(ChainFault))


@pytest.mark.parametrize("fault", BROKEN)
def test_a_chain_is_broken_in_one_way(lab: Lab, client: httpx.Client, fault: str) -> None:
    lab.set(chain=fault)
    enrolled = enroll(lab, client)
    assert BROKEN[fault](enrolled)
    if fault in ("", "foreign_ca", "other_key"):
        assert extension(enrolled, TN_AUTH_LIST).value.public_bytes() == DER["1234"]


@pytest.mark.parametrize("fault", ["empty", "garbage"])
def test_a_chain_that_is_none(lab: Lab, client: httpx.Client, fault: str) -> None:
    lab.set(chain=fault)
    enrolled = enroll(lab, client, parse=False)
    with pytest.raises(ValueError, match=r"\w"):
        x509.load_pem_x509_certificates(enrolled.download.content)


def test_the_control_endpoint_reads_sets_and_puts_back(lab: Lab, client: httpx.Client) -> None:
    url = f"{lab.facts.control_url}/switches"
    assert client.get(url).json()["chain"] == ""
    assert (
        client.post(url, json={"chain": "no_policy", "retry_after": 3}).json()["retry_after"] == 3
    )
    for wrong in ({"chain": "no such"}, {"no_such": 1}, ["chain"]):
        assert client.post(url, json=wrong).status_code == 400
    assert client.get(url).json()["chain"] == "no_policy"
    assert client.delete(url).json()["chain"] == ""


def test_the_log_counts_what_was_done(lab: Lab, client: httpx.Client) -> None:
    url = f"{lab.facts.control_url}/log"
    client.delete(url)
    before = client.get(url).json()["counts"]
    enroll(lab, client)
    after = client.get(url).json()
    for name in ("orders", "certificates", "tokens", "accounts"):
        assert after["counts"][name] == before[name] + 1
    paths = [(each["method"], each["path"], each["status"]) for each in after["requests"]]
    assert paths.count(("POST", "/ca/new-order", 201)) == 1
    assert Path(lab.facts.pa_password_file).read_text() not in str(after)
