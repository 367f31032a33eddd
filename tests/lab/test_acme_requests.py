"""Requests and accounts: RFC 8555 sections 6 and 7.3."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from kmsd.lab import Lab
from tests.lab.parties import Acme, b64, enroll, es256, flattened, jwk, new_key, problem, unb64


def test_nonces_come_by_head_and_by_get(acme: Acme) -> None:
    head = acme.web.head(acme.directory["newNonce"])
    get = acme.web.get(acme.directory["newNonce"])
    assert (head.status_code, get.status_code) == (200, 204)
    assert head.headers["Replay-Nonce"] != get.headers["Replay-Nonce"]
    assert get.headers["Cache-Control"] == "no-store"


def test_every_answer_carries_a_nonce_and_the_index(acme: Acme) -> None:
    good, bad = acme.order(), acme.order("!")
    for answer in (good, bad):
        assert answer.headers["Replay-Nonce"]
        assert 'rel="index"' in answer.headers["Link"]


def test_a_nonce_is_good_once(acme: Acme) -> None:
    url = acme.directory["newOrder"]
    message = flattened(acme.key, acme.header(url), b"{}")
    assert problem(acme.send(url, message)) == "malformed"  # of the payload: the nonce was good
    assert problem(acme.send(url, message)) == "badNonce"


def test_a_hostile_lab_refuses_good_nonces(lab: Lab, acme: Acme) -> None:
    lab.set(bad_nonce_share=1.0)
    url = acme.kid
    refused = acme.send(url, flattened(acme.key, acme.header(url), b""))
    assert (refused.status_code, problem(refused)) == (400, "badNonce")
    assert refused.headers["Replay-Nonce"]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"alg": "none"}, "badSignatureAlgorithm"),
        ({"alg": "HS256"}, "badSignatureAlgorithm"),
        ({"alg": "RS256"}, "badSignatureAlgorithm"),
        ({"url": "https://localhost/ca/new-order"}, "unauthorized"),
        ({"url": None}, "unauthorized"),
        ({"nonce": None}, "malformed"),
        ({"nonce": "bm9uY2U"}, "badNonce"),
        ({"kid": None}, "malformed"),
        ({"jwk": {"kty": "EC"}}, "malformed"),
        ({"kid": None, "jwk": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}}, "badPublicKey"),
        ({"kid": "https://localhost/nobody"}, "accountDoesNotExist"),
        ({"kid": 7}, "accountDoesNotExist"),
        ({"crit": ["url"]}, "malformed"),
    ],
)
def test_each_rule_of_the_protected_header(acme: Acme, changes: dict[str, Any], kind: str) -> None:
    url = acme.kid
    answer = acme.send(url, flattened(acme.key, acme.header(url, **changes), b""))
    assert problem(answer) == kind
    if kind == "badSignatureAlgorithm":
        assert answer.json()["algorithms"] == ["ES256"]


def test_a_signature_by_another_key_is_refused(acme: Acme) -> None:
    url = acme.kid
    answer = acme.send(url, flattened(new_key(), acme.header(url), b""))
    assert "does not verify" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"protected":"","payload":"","signature":""}',
        b'{"protected":"e30","payload":"","signature":""}',
        b'{"payload":"","signature":""}',
        b'{"protected":"\xc3\xa9","payload":"","signature":""}',
        b'{"signatures":[],"payload":""}',
        b"[" * 60_000,
        b"\xff\xfe",
    ],
)
def test_a_body_that_is_no_flattened_jws_is_refused(acme: Acme, body: bytes) -> None:
    media_type = {"Content-Type": "application/jose+json"}
    answer = acme.web.post(acme.kid, content=body, headers=media_type)
    assert problem(answer) in ("malformed", "badSignatureAlgorithm")


def test_a_request_that_is_too_large_is_refused(acme: Acme) -> None:
    media_type = {"Content-Type": "application/jose+json"}
    answer = acme.web.post(acme.kid, content=b" " * 100_000, headers=media_type)
    assert answer.status_code == 413


def test_only_jose_json_is_taken(acme: Acme) -> None:
    url = acme.kid
    message = flattened(acme.key, acme.header(url), b"")
    assert acme.web.post(url, json=message).status_code == 415


def test_plain_get_of_a_resource_is_not_allowed(acme: Acme) -> None:
    for url in (acme.kid, acme.order().headers["Location"]):
        answer = acme.web.get(url)
        assert (answer.status_code, problem(answer)) == (405, "malformed")


def test_a_payload_where_post_as_get_belongs_is_refused(acme: Acme) -> None:
    assert problem(acme.post(acme.order().headers["Location"], {})) == "malformed"


def test_a_key_that_is_known_gets_its_account_again(acme: Acme) -> None:
    kid, acme.kid = acme.kid, ""
    again = acme.register(onlyReturnExisting=True)
    assert (again.status_code, again.headers["Location"]) == (200, kid)


def test_an_unknown_key_is_not_registered_when_only_existing_is_asked(acme: Acme) -> None:
    acme.kid, acme.key = "", new_key()
    assert problem(acme.register(onlyReturnExisting=True)) == "accountDoesNotExist"


@pytest.mark.parametrize(
    ("contact", "kind"),
    [
        (["tel:+12155551212"], "unsupportedContact"),
        (["mailto:nobody"], "invalidContact"),
        ("mailto:a@example.com", "malformed"),
    ],
)
def test_contacts_are_checked(acme: Acme, contact: object, kind: str) -> None:
    assert problem(acme.post(acme.kid, {"contact": contact})) == kind
    good = acme.post(acme.kid, {"contact": ["mailto:noc@example.com"]})
    assert good.json()["contact"] == ["mailto:noc@example.com"]


def test_terms_have_to_be_agreed_to_where_there_are_some(lab: Lab, acme: Acme) -> None:
    lab.set(terms=True)
    acme.kid, acme.key = "", new_key()
    refused = acme.register()
    assert problem(refused) == "userActionRequired"
    assert 'rel="terms-of-service"' in refused.headers["Link"]
    assert acme.register(termsOfServiceAgreed=True).status_code == 201


def test_a_deactivated_account_is_of_no_use(acme: Acme) -> None:
    assert acme.post(acme.kid, {"status": "deactivated"}).json()["status"] == "deactivated"
    refused = acme.order()
    assert (refused.status_code, problem(refused)) == (403, "unauthorized")


def test_an_account_lists_its_orders(acme: Acme) -> None:
    placed = acme.order()
    orders = acme.post(acme.post(acme.kid, None).json()["orders"], None).json()["orders"]
    assert orders == [placed.headers["Location"]]


def test_external_binding_is_required_where_switched_on(lab: Lab, client: httpx.Client) -> None:
    lab.set(eab="required")
    secret = unb64(Path(lab.facts.eab_mac_file).read_text())
    acme = Acme(lab.facts, client)
    assert acme.directory["meta"]["externalAccountRequired"] is True
    assert problem(acme.register()) == "externalAccountRequired"
    kid, url = lab.facts.eab_kid, "https://localhost/elsewhere"
    other = Acme(lab.facts, client).binding(secret, kid)
    good = acme.binding(secret, kid)
    bad: dict[str, list[Any]] = {
        "unauthorized": [acme.binding(b"guess", kid), acme.binding(secret, "nobody")],
        "malformed": [other, acme.binding(secret, kid, url), {}, "x", {**good, "payload": "!"}],
    }
    for kind, bindings in bad.items():
        for binding in bindings:
            assert problem(acme.register(externalAccountBinding=binding)) == kind
    assert acme.register(externalAccountBinding=good).status_code == 201


def change_key(acme: Acme, fresh: Any, **changes: Any) -> httpx.Response:
    url = acme.directory["keyChange"]
    header = {"alg": "ES256", "url": url, "jwk": jwk(fresh)}
    body = {"account": acme.kid, "oldKey": jwk(acme.key)}
    for name, value in changes.items():
        (header if name in ("nonce", "url", "alg") else body)[name] = value
    inner = flattened(fresh, header, json.dumps(body).encode())
    return acme.post(url, dict(inner))


def test_a_key_change_moves_the_account_to_the_new_key(acme: Acme) -> None:
    old, fresh = acme.key, new_key()
    assert change_key(acme, fresh).status_code == 200
    assert "does not verify" in acme.post(acme.kid, None).json()["detail"]
    acme.key = fresh
    assert acme.post(acme.kid, None).status_code == 200
    acme.kid, acme.key = "", old
    assert problem(acme.register(onlyReturnExisting=True)) == "accountDoesNotExist"


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "bm9uY2U"},
        {"url": "https://localhost/elsewhere"},
        {"account": "https://localhost/nobody"},
        {"oldKey": {"kty": "EC"}},
        {"oldKey": jwk(new_key())},
    ],
)
def test_a_key_change_that_is_not_whole_is_refused(acme: Acme, changes: dict[str, Any]) -> None:
    assert problem(change_key(acme, new_key(), **changes)) == "malformed"
    assert acme.post(acme.kid, None).status_code == 200


def test_a_key_change_to_a_key_in_use_conflicts(lab: Lab, acme: Acme, client: httpx.Client) -> None:
    other = Acme(lab.facts, client)
    other.register()
    conflict = change_key(acme, other.key)
    assert (conflict.status_code, conflict.headers["Location"]) == (409, other.kid)


def test_a_certificates_key_gets_no_account(lab: Lab, client: httpx.Client) -> None:
    key = enroll(lab, client).key
    assert problem(Acme(lab.facts, client, key).register()) == "badPublicKey"


def test_a_private_key_in_the_jwk_is_refused(lab: Lab, client: httpx.Client) -> None:
    acme = Acme(lab.facts, client)
    url = acme.directory["newAccount"]
    header = acme.header(url, jwk={**jwk(acme.key), "d": b64(b"secret")})
    assert problem(acme.send(url, flattened(acme.key, header, b"{}"))) == "badPublicKey"


def test_a_member_that_appears_twice_is_refused(acme: Acme) -> None:
    url = acme.kid
    text = json.dumps(acme.header(url))
    protected = b64((text[:-1] + ', "alg": "ES256"}').encode())
    message = {"protected": protected, "payload": "", "signature": es256(acme.key, protected + ".")}
    assert problem(acme.send(url, message)) == "malformed"


def test_a_client_without_a_name_is_refused(acme: Acme) -> None:
    url = acme.kid
    message = json.dumps(flattened(acme.key, acme.header(url), b""))
    headers = {"Content-Type": "application/jose+json", "User-Agent": ""}
    assert problem(acme.web.post(url, content=message, headers=headers)) == "malformed"


def test_what_belongs_to_another_account_is_not_shown(
    lab: Lab, acme: Acme, client: httpx.Client
) -> None:
    stranger = Acme(lab.facts, client)
    stranger.register()
    for url in (acme.kid, f"{acme.kid}/orders"):
        assert problem(stranger.post(url, None)) == "unauthorized"


def test_a_binding_that_is_not_asked_for_is_checked_all_the_same(
    lab: Lab, client: httpx.Client
) -> None:
    acme = Acme(lab.facts, client)
    refused = acme.register(externalAccountBinding=acme.binding(b"guess", lab.facts.eab_kid))
    assert problem(refused) == "unauthorized"
    assert acme.register().status_code == 201


def test_kid_and_jwk_each_have_their_place(lab: Lab, acme: Acme, client: httpx.Client) -> None:
    assert problem(acme.post(acme.directory["newAccount"], {})) == "malformed"
    stranger = Acme(lab.facts, client)
    assert problem(stranger.order()) == "malformed"


@pytest.mark.parametrize("status", ["valid", "revoked", 7])
def test_an_account_cannot_be_made_anything_but_deactivated(acme: Acme, status: object) -> None:
    assert problem(acme.post(acme.kid, {"status": status})) == "malformed"


def test_a_deactivated_accounts_key_gets_no_second_account(acme: Acme) -> None:
    acme.post(acme.kid, {"status": "deactivated"})
    acme.kid = ""
    assert problem(acme.register()) == "unauthorized"
