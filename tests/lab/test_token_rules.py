"""RFC 9448 section 6, rule by rule: a token that breaks just one is refused for just that one."""

import base64
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kmsd.lab import Lab
from tests.lab.parties import (
    DER,
    Acme,
    Subscriber,
    b64,
    compact,
    decoded,
    fingerprint,
    load_key,
    make_csr,
    new_key,
    problem,
)

Parts = tuple[dict[str, Any], dict[str, Any]]


def good_parts(lab: Lab, acme: Acme) -> Parts:
    header = {
        "alg": "ES256",
        "typ": "JWT",
        "x5u": f"{lab.facts.pa_url}/download/v1/certificate/certificateId_1.crt",
    }
    payload = {
        "exp": int(time.time()) + 600,
        "jti": str(uuid.uuid4()),
        "atc": {
            "tktype": "TNAuthList",
            "tkvalue": b64(DER["1234"]),
            "ca": False,
            "fingerprint": fingerprint(acme.key),
        },
    }
    return header, payload


def pki_key(lab: Lab, name: str) -> Any:
    return load_key(Path(lab.facts.pa_root).with_name(f"{name}.key"))


def verdict(acme: Acme, token: str) -> dict[str, Any]:
    """The final challenge of a new order answered with this token."""
    return acme.answer(acme.order().json(), token)


def test_the_parts_make_a_token_that_is_accepted(lab: Lab, acme: Acme) -> None:
    token = compact(pki_key(lab, "pa-signer"), *good_parts(lab, acme))
    assert verdict(acme, token)["status"] == "valid"


def header(**changes: Any) -> Callable[[Parts], Parts]:
    def change(parts: Parts) -> Parts:
        merged = parts[0] | changes
        return {k: v for k, v in merged.items() if v is not None}, parts[1]

    return change


def payload(**changes: Any) -> Callable[[Parts], Parts]:
    def change(parts: Parts) -> Parts:
        merged = parts[1] | changes
        return parts[0], {k: v for k, v in merged.items() if v is not None}

    return change


def atc(**changes: Any) -> Callable[[Parts], Parts]:
    def change(parts: Parts) -> Parts:
        merged = parts[1]["atc"] | changes
        kept = {k: v for k, v in merged.items() if v is not None}
        return parts[0], parts[1] | {"atc": kept}

    return change


LOWER = "SHA256 " + ":".join(["ab"] * 32)


@pytest.mark.parametrize(
    ("change", "rule", "kind"),
    [
        (header(alg="ES384"), "well-formed", "malformed"),
        (header(typ=None), "well-formed", "malformed"),
        (header(crit=["exp"]), "well-formed", "malformed"),
        (payload(exp=None), "well-formed", "malformed"),
        (payload(exp="soon"), "well-formed", "malformed"),
        (payload(jti=None), "well-formed", "malformed"),
        (payload(atc="TNAuthList"), "well-formed", "malformed"),
        (atc(tkvalue=None), "well-formed", "malformed"),
        (atc(fingerprint=None), "well-formed", "malformed"),
        (atc(ca="false"), "well-formed", "malformed"),
        (header(x5u=None), "x5u", "malformed"),
        (header(x5u="http://localhost/token.crt"), "x5u", "unauthorized"),
        (header(x5u="https://localhost/token.crt"), "x5u", "unauthorized"),
        (header(x5c=["AAAA"], x5u=None), "x5c", "malformed"),
        (atc(tktype="TnAuthList"), "tktype", "incorrectResponse"),
        (atc(tkvalue=b64(DER["567A"])), "tkvalue", "incorrectResponse"),
        (atc(tkvalue="MAigBhYEMTIzNA=="), "tkvalue", "incorrectResponse"),
        (atc(tkvalue="MAigBhYEMTIzNB"), "tkvalue", "incorrectResponse"),
        (payload(exp=int(time.time()) - 5), "exp", "unauthorized"),
        (payload(nbf=int(time.time()) + 3600), "exp", "unauthorized"),
        (atc(fingerprint=LOWER), "fingerprint", "incorrectResponse"),
    ],
)
def test_each_rule_is_checked(
    lab: Lab, acme: Acme, change: Callable[[Parts], Parts], rule: str, kind: str
) -> None:
    token = compact(pki_key(lab, "pa-signer"), *change(good_parts(lab, acme)))
    challenge = verdict(acme, token)
    assert challenge["status"] == "invalid"
    assert challenge["error"]["rule"] == rule
    assert challenge["error"]["type"].endswith(f":{kind}")


def test_a_signature_by_another_key_does_not_verify(lab: Lab, acme: Acme) -> None:
    token = compact(new_key(), *good_parts(lab, acme))
    assert verdict(acme, token)["error"]["rule"] == "signature"


def test_another_authoritys_chain_is_not_trusted(lab: Lab, acme: Acme) -> None:
    head, body = good_parts(lab, acme)
    head["x5u"] = head["x5u"].replace("_1.crt", "_3.crt")
    token = compact(pki_key(lab, "foreign-pa"), head, body)
    challenge = verdict(acme, token)
    assert challenge["error"]["rule"] == "x5u"
    assert "not under the STI-PA root" in challenge["error"]["detail"]


def test_the_chain_may_come_with_the_token_as_x5c(lab: Lab, acme: Acme) -> None:
    head, body = good_parts(lab, acme)
    pem = acme.web.get(head.pop("x5u")).content
    chain = x509.load_pem_x509_certificates(pem)
    head["x5c"] = [base64.b64encode(each.public_bytes(Encoding.DER)).decode() for each in chain]
    assert verdict(acme, compact(pki_key(lab, "pa-signer"), head, body))["status"] == "valid"
    head["x5c"] = []
    assert verdict(acme, compact(new_key(), head, body))["error"]["rule"] == "x5c"


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "....", "\ud83d\udca9"])
def test_what_is_no_token_at_all_is_malformed(acme: Acme, token: str) -> None:
    assert verdict(acme, token)["error"]["rule"] == "well-formed"


def test_a_token_is_good_for_one_order(acme: Acme, subscriber: Subscriber) -> None:
    token = subscriber.token(acme.key)
    assert verdict(acme, token)["status"] == "valid"
    assert verdict(acme, token)["error"]["rule"] == "jti"


@pytest.mark.parametrize(("token_ca", "csr_ca"), [(True, None), (False, True), (True, False)])
def test_ca_of_the_token_and_of_the_csr_agree(
    acme: Acme, subscriber: Subscriber, token_ca: bool, csr_ca: bool | None
) -> None:
    placed = acme.order()
    token = subscriber.token(acme.key, ca=token_ca)
    assert acme.answer(placed.json(), token)["status"] == "valid"
    refused = acme.finalize(placed.json(), make_csr(new_key(), ca=csr_ca))
    assert problem(refused) == "badCSR"
    assert refused.json()["rule"] == "ca"


def test_a_delegate_ca_is_not_certified_even_when_they_agree(
    acme: Acme, subscriber: Subscriber
) -> None:
    placed = acme.order()
    acme.answer(placed.json(), subscriber.token(acme.key, ca=True))
    refused = acme.finalize(placed.json(), make_csr(new_key(), ca=True))
    assert "delegate" in refused.json()["detail"]


def test_a_refused_challenge_makes_the_order_invalid_for_good(
    lab: Lab, acme: Acme, subscriber: Subscriber
) -> None:
    placed = acme.order()
    acme.answer(placed.json(), "no token")
    order = acme.post(placed.headers["Location"], None).json()
    assert order["status"] == "invalid"
    assert order["error"]["rule"] == "well-formed"
    authorization = acme.post(order["authorizations"][0], None).json()
    assert authorization["status"] == "invalid"
    url = authorization["challenges"][0]["url"]
    again = acme.post(url, {"tkauth": subscriber.token(acme.key)})
    assert problem(again) == "malformed"


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("garbage", "well-formed"),
        ("no_jti", "well-formed"),
        ("http_x5u", "x5u"),
        ("foreign", "x5u"),
        ("signature", "signature"),
        ("tktype", "tktype"),
        ("tkvalue", "tkvalue"),
        ("expired", "exp"),
        ("fingerprint", "fingerprint"),
    ],
)
def test_each_token_switch_breaks_its_rule(
    lab: Lab, acme: Acme, subscriber: Subscriber, fault: str, rule: str
) -> None:
    subscriber.login()
    lab.set(token=fault)
    assert verdict(acme, subscriber.token(acme.key))["error"]["rule"] == rule


def test_the_switches_of_jti_and_ca_show_in_the_token(
    lab: Lab, acme: Acme, subscriber: Subscriber
) -> None:
    first = decoded(subscriber.token(acme.key))[1]
    lab.set(token="reused_jti")
    assert decoded(subscriber.token(acme.key))[1]["jti"] == first["jti"]
    lab.set(token="ca")
    assert decoded(subscriber.token(acme.key))[1]["atc"]["ca"] is True
