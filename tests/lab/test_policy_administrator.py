"""The STI-PA: login, SPC tokens, the list of trusted STI-CAs, its certificates."""

import base64
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from kmsd.lab import Lab
from tests.lab.parties import DER, Subscriber, b64, decoded, fingerprint, new_key, unb64

GOOD = {
    "tktype": "TNAuthList",
    "tkvalue": b64(DER["1234"]),
    "ca": False,
    "fingerprint": fingerprint(new_key()),
}


def verified(client: httpx.Client, root: str, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and payload of an STI-PA's JWS, its signature and chain checked."""
    header, payload = decoded(token)
    chain = x509.load_pem_x509_certificates(client.get(header["x5u"]).content)
    chain[0].verify_directly_issued_by(x509.load_pem_x509_certificate(Path(root).read_bytes()))
    signed, _, signature = token.rpartition(".")
    raw = unb64(signature)
    assert len(raw) == 64
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    key = chain[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(encode_dss_signature(r, s), signed.encode(), ec.ECDSA(hashes.SHA256()))
    return header, payload


def test_a_token_answer_is_the_fields_and_the_token_the_rfcs(
    lab: Lab, subscriber: Subscriber
) -> None:
    subscriber.login()
    answer = subscriber.ask("1234", GOOD)
    body = answer.json()
    assert answer.headers["content-type"] == "application/jose+json"
    assert body["status"] == "success"
    assert body["crl"] == lab.facts.crl_url
    assert body["iss"].startswith("O=STI-PA")
    assert "1234" in body["message"]
    header, payload = verified(subscriber.web, lab.facts.pa_root, body["token"])
    assert (header["alg"], header["typ"]) == ("ES256", "JWT")
    assert payload["atc"] == GOOD
    assert payload["jti"]
    assert 0 < payload["exp"] - time.time() <= 3600


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"tktype": "TnAuthList"}, 400),
        ({"tktype": None}, 400),
        ({"tkvalue": "!"}, 400),
        ({"tkvalue": 5}, 400),
        ({"tkvalue": "MTIzNA"}, 400),
        ({"tkvalue": b64(DER["567A"])}, 403),
        ({"ca": "no"}, 400),
        ({"fingerprint": "SHA256 AB:CD"}, 400),
        ({"fingerprint": None}, 400),
    ],
)
def test_each_member_of_the_request_is_checked(
    subscriber: Subscriber, changes: dict[str, Any], status: int
) -> None:
    subscriber.login()
    answer = subscriber.ask("1234", GOOD | changes)
    assert answer.status_code == status
    assert answer.json()["status"] == "error"
    assert answer.json()["message"]


def test_both_alphabets_are_signed_as_they_came(subscriber: Subscriber) -> None:
    padded = base64.b64encode(DER["1234"]).decode()
    token = subscriber.token(new_key(), tkvalue=padded)
    assert decoded(token)[1]["atc"]["tkvalue"] == padded


def test_an_account_that_is_not_ours_is_not_found(subscriber: Subscriber) -> None:
    subscriber.login()
    assert subscriber.ask("9999", GOOD).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"userId": "lab-operator", "password": "guess"}, 403),
        ({"userId": "nobody", "password": "guess"}, 403),
        ({"userId": "lab-operator"}, 400),
        ({"userId": 1, "password": []}, 400),
    ],
)
def test_a_wrong_login_is_refused(
    lab: Lab, client: httpx.Client, body: dict[str, Any], status: int
) -> None:
    answer = client.post(f"{lab.facts.pa_url}/api/v1/auth/login", json=body)
    assert answer.status_code == status
    assert "accessToken" not in answer.json()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 50_000, b" " * 100_000])
def test_a_login_that_is_no_object_is_refused(lab: Lab, client: httpx.Client, body: bytes) -> None:
    url = f"{lab.facts.pa_url}/api/v1/auth/login"
    answer = client.post(url, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 413)
    assert client.post(url, content=body).status_code == 415


def test_a_session_ends_by_logout_and_by_time(lab: Lab, subscriber: Subscriber) -> None:
    access = subscriber.login()
    assert subscriber.ask("1234", GOOD).status_code == 200
    headers = {"Authorization": access}
    out = subscriber.web.post(f"{lab.facts.pa_url}/api/v1/auth/logout", headers=headers)
    assert out.json()["status"] == "success"
    assert subscriber.ask("1234", GOOD).status_code == 403
    lab.set(session_seconds=0)
    subscriber.login()
    assert subscriber.ask("1234", GOOD).status_code == 403


def test_authorization_is_raw_bearer_or_basic_by_switch(lab: Lab, subscriber: Subscriber) -> None:
    access = subscriber.login()
    password = Path(lab.facts.pa_password_file).read_text()
    pair = base64.b64encode(f"{lab.facts.pa_user}:{password}".encode()).decode()
    forms = {"raw": access, "bearer": f"Bearer {access}", "basic": f"Basic {pair}"}
    for switch in forms:
        lab.set(pa_authorization=switch)
        for form, value in forms.items():
            subscriber.access = value
            expected = 200 if form == switch else 403
            assert subscriber.ask("1234", GOOD).status_code == expected


def test_the_body_is_wrapped_or_bare_by_switch(lab: Lab, subscriber: Subscriber) -> None:
    headers = {"Authorization": subscriber.login()}
    url = f"{lab.facts.pa_url}/api/v1/account/1234/token/"  # the slash is seen in the field
    for switch, wrapped, bare in (("atc", 200, 400), ("bare", 400, 200), ("either", 200, 200)):
        lab.set(pa_body=switch)
        asked = [
            subscriber.web.post(url, json=body, headers=headers).status_code
            for body in ({"atc": GOOD}, GOOD)
        ]
        assert asked == [wrapped, bare]


def test_refusals_come_as_an_error_or_as_a_200_that_is_none(
    lab: Lab, subscriber: Subscriber
) -> None:
    subscriber.login()
    lab.set(token="refused")
    assert subscriber.ask("1234", GOOD).status_code == 403
    lab.set(token="soft_refused")
    soft = subscriber.ask("1234", GOOD)
    assert (soft.status_code, soft.json()["status"]) == (200, "failure")


def ca_list(lab: Lab, subscriber: Subscriber) -> str:
    headers = {"Authorization": subscriber.access or subscriber.login()}
    answer = subscriber.web.get(f"{lab.facts.pa_url}/api/v1/ca-list", headers=headers)
    assert answer.json()["status"] == "success"
    text: str = answer.json()["caList"]
    return text


def test_the_list_of_trusted_authorities_is_signed(lab: Lab, subscriber: Subscriber) -> None:
    header, payload = verified(subscriber.web, lab.facts.pa_root, ca_list(lab, subscriber))
    assert header["alg"] == "ES256"
    assert payload["trustList"] == [Path(lab.facts.ca_root).read_text()]
    assert isinstance(payload["version"], str)
    assert isinstance(payload["sequence"], int)
    assert payload["exp"] > time.time()


def test_the_list_needs_a_login_by_switch(lab: Lab, client: httpx.Client) -> None:
    url = f"{lab.facts.pa_url}/api/v1/ca-list"
    assert client.get(url).status_code == 403
    lab.set(pa_list_needs_login=False)
    assert client.get(url).status_code == 200


def test_each_fault_of_the_list_shows(lab: Lab, subscriber: Subscriber) -> None:
    good = decoded(ca_list(lab, subscriber))[1]
    lab.set(ca_list="lower_sequence")
    assert decoded(ca_list(lab, subscriber))[1]["sequence"] < good["sequence"]
    lab.set(ca_list="empty")
    assert decoded(ca_list(lab, subscriber))[1]["trustList"] == []
    lab.set(ca_list="expired")
    assert decoded(ca_list(lab, subscriber))[1]["exp"] < time.time()
    lab.set(ca_list="garbage")
    assert "." not in ca_list(lab, subscriber)
    for fault in ("foreign", "signature"):
        lab.set(ca_list=fault)
        with pytest.raises((InvalidSignature, ValueError)):
            verified(subscriber.web, lab.facts.pa_root, ca_list(lab, subscriber))


def test_what_is_not_there_is_said_in_json(lab: Lab, client: httpx.Client) -> None:
    for path in ("/download/v1/certificate/certificateId_9.crt", "/nothing"):
        answer = client.get(lab.facts.pa_url + path)
        assert (answer.status_code, answer.json()["status"]) == (404, "error")
