"""The whole way to a certificate, in every dialect, and what OpenSSL says of the result."""

import base64
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from kmsd.lab import Lab, running_lab
from tests.lab.parties import (
    DER,
    TN_AUTH_LIST,
    Acme,
    Subscriber,
    b64,
    collect,
    enroll,
    fingerprint,
    make_csr,
    new_key,
    problem,
    web,
)


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_rfc_way_leads_to_a_chain_openssl_accepts(
    lab: Lab, client: httpx.Client, tmp_path: Path
) -> None:
    enrolled = enroll(lab, client)
    assert enrolled.download.headers["content-type"] == "application/pem-certificate-chain"
    leaf, intermediate = tmp_path / "leaf.pem", tmp_path / "intermediate.pem"
    pems = enrolled.download.text.split("-----BEGIN")
    leaf.write_text("-----BEGIN" + pems[1])
    intermediate.write_text("-----BEGIN" + pems[2])
    verified = openssl(
        "verify", "-x509_strict", "-CAfile", lab.facts.ca_root, "-untrusted", intermediate, leaf
    )
    assert verified.strip().endswith("OK")
    csr = tmp_path / "request.der"
    csr.write_bytes(make_csr(new_key()))
    assert "1.3.6.1.5.5.7.1.26" in openssl("req", "-inform", "DER", "-in", csr, "-noout", "-text")


def test_a_certificate_follows_the_profile_to_the_letter(lab: Lab, client: httpx.Client) -> None:
    leaf = enroll(lab, client).leaf
    names = {a.oid: a.value for a in leaf.subject}
    assert names[NameOID.COUNTRY_NAME] == "US"
    assert str(names[NameOID.COMMON_NAME]).startswith("SHAKEN 1234 ")
    assert leaf.serial_number.bit_length() > 64
    critical = {e.oid.dotted_string for e in leaf.extensions if e.critical}
    assert critical == {"2.5.29.19", "2.5.29.15"}  # basicConstraints, keyUsage
    others = {e.oid.dotted_string for e in leaf.extensions if not e.critical}
    assert others == {"2.5.29.32", "2.5.29.14", "2.5.29.35", "2.5.29.31", "1.3.6.1.5.5.7.1.26"}
    entry = leaf.extensions.get_extension_for_oid(TN_AUTH_LIST).value
    assert entry.public_bytes() == DER["1234"]
    (policy,) = leaf.extensions.get_extension_for_class(x509.CertificatePolicies).value
    assert policy.policy_identifier.dotted_string == "2.16.840.1.114569.1.1.4"
    (point,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [name.value for name in point.full_name or ()] == [lab.facts.crl_url]
    assert point.crl_issuer
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.content_commitment
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 90


def test_the_field_way_works_where_it_is_switched_on(
    lab: Lab, client: httpx.Client, subscriber: Subscriber
) -> None:
    lab.set(
        encoding="base64",
        challenge_field="atc",
        fingerprint="spki",
        empty_payload="protected_only",
        order_x5u=True,
        x5u_header=True,
        challenge_token=False,
    )
    value = base64.b64encode(DER["1234"]).decode()
    acme = Acme(lab.facts, client, dot=False)
    acme.register()
    placed = acme.order(value)
    spki = fingerprint(acme.key, "spki")
    token = subscriber.token(acme.key, tkvalue=value, fingerprint=spki)
    challenge = acme.answer(placed.json(), token, "atc")
    assert challenge["status"] == "valid"
    assert "token" not in challenge
    key = new_key()
    acme.finalize(placed.json(), make_csr(key, subject=False))
    enrolled = collect(acme, key, placed.headers["Location"])
    x5u = enrolled.order["x5u"]
    assert enrolled.download.headers["X-Shaken-Certificate-Location"] == x5u
    hosted = client.get(x5u)
    assert x509.load_pem_x509_certificates(hosted.content) == enrolled.chain
    (cn,) = enrolled.leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert str(cn.value).startswith("SHAKEN 1234 ")


@pytest.mark.parametrize(
    ("switches", "refusal"),
    [
        ({"encoding": "base64"}, "order"),
        ({"challenge_field": "atc"}, "answer"),
        ({"empty_payload": "protected_only"}, "fetch"),
        ({"fingerprint": "spki"}, "token"),
        ({"fingerprint_case": "lower"}, "token"),
    ],
)
def test_a_strict_dialect_refuses_the_other_one(
    lab: Lab, acme: Acme, subscriber: Subscriber, switches: dict[str, str], refusal: str
) -> None:
    lab.set(**switches)
    placed = acme.order()
    if refusal == "order":
        assert problem(placed) == "malformed"
        return
    assert placed.status_code == 201
    fetched = acme.post(placed.json()["authorizations"][0], None)
    if refusal == "fetch":
        assert problem(fetched) == "malformed"
        return
    url = fetched.json()["challenges"][0]["url"]
    answered = acme.post(url, {"tkauth": subscriber.token(acme.key)})
    if refusal == "answer":
        assert problem(answered) == "malformed"
        assert acme.post(url, None).json()["status"] == "pending"
    else:
        assert answered.json()["error"]["rule"] == "fingerprint"


def test_base64_with_padding_is_refused_where_base64url_is_law(lab: Lab, acme: Acme) -> None:
    padded = base64.b64encode(DER["1234"]).decode()
    assert padded.endswith("=")
    assert problem(acme.order(padded)) == "malformed"


def test_a_hostile_lab_still_issues_to_a_patient_client(tmp_path: Path) -> None:
    with running_lab(tmp_path, seed=7, bad_nonce_share=0.4) as lab, web(lab.facts) as client:
        enrolled = enroll(lab, client, "567A")
        assert enrolled.leaf.public_key() == enrolled.key.public_key()
        counts = lab.counts()
        assert counts["bad_nonces"] > 0
        assert counts["certificates"] == 1
        directory = client.get(lab.facts.ca_directory).json()
        assert "not for you" in directory.values()


def test_a_slow_step_shows_its_state_and_a_retry_after(
    lab: Lab, acme: Acme, subscriber: Subscriber
) -> None:
    placed = acme.order()
    lab.set(order="never_ready")
    order = placed.json()
    url = acme.post(order["authorizations"][0], None).json()["challenges"][0]["url"]
    answered = acme.post(url, {"tkauth": subscriber.token(acme.key)})
    assert answered.json()["status"] == "processing"
    for waiting in (url, order["authorizations"][0], placed.headers["Location"]):
        assert acme.post(waiting, None).headers["Retry-After"] == "1"


def test_an_issuance_that_never_ends_stays_processing(
    lab: Lab, acme: Acme, subscriber: Subscriber
) -> None:
    placed = acme.order()
    acme.answer(placed.json(), subscriber.token(acme.key))
    lab.set(order="never_issued")
    acme.finalize(placed.json(), make_csr(new_key()))
    polled = acme.post(placed.headers["Location"], None)
    assert polled.json()["status"] == "processing"
    assert polled.headers["Retry-After"] == "1"
    assert problem(acme.finalize(placed.json(), make_csr(new_key()))) == "orderNotReady"


def test_the_times_of_the_order_are_honoured(lab: Lab, client: httpx.Client) -> None:
    asked: dict[str, Any] = {
        "notBefore": "2026-01-02T03:04:05Z",
        "notAfter": "2030-01-02T05:04:05+02:00",
    }
    leaf = enroll(lab, client, **asked).leaf
    assert leaf.not_valid_before_utc.isoformat() == "2026-01-02T03:04:05+00:00"
    assert leaf.not_valid_after_utc.isoformat() == "2030-01-02T03:04:05+00:00"


@pytest.mark.parametrize(
    "times", [{"notAfter": "tomorrow"}, {"notAfter": "2020-01-01T00:00:00Z"}, {"notBefore": 5}]
)
def test_times_that_make_no_sense_are_malformed(acme: Acme, times: dict[str, Any]) -> None:
    assert problem(acme.order(**times)) == "malformed"


def test_the_lifetime_can_be_seconds(lab: Lab, client: httpx.Client) -> None:
    lab.set(certificate_seconds=5)
    leaf = enroll(lab, client).leaf
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).seconds == 5


@pytest.mark.parametrize(
    ("identifiers", "name"),
    [
        ([], "malformed"),
        (["1234"], "malformed"),
        ([{"type": "TNAuthList"}], "malformed"),
        ([{"type": "dns", "value": "example.com"}], "unsupportedIdentifier"),
        ([{"type": "TNAuthList", "value": "!"}], "malformed"),
        ([{"type": "TNAuthList", "value": "MTIzNA"}], "rejectedIdentifier"),
        ([{"type": "TNAuthList", "value": b64(DER["1234"])}] * 2, "rejectedIdentifier"),
        (  # a telephone number
            [{"type": "TNAuthList", "value": "MA-iDRYLMTIxMjU1NTE4MjQ"}],
            "rejectedIdentifier",
        ),
    ],
)
def test_an_identifier_that_is_no_single_spc_is_refused(
    acme: Acme, identifiers: list[object], name: str
) -> None:
    answer = acme.post(acme.directory["newOrder"], {"identifiers": identifiers})
    assert problem(answer) == name


def test_finalizing_early_is_not_ready(acme: Acme) -> None:
    placed = acme.order()
    assert problem(acme.finalize(placed.json(), make_csr(new_key()))) == "orderNotReady"


def test_another_accounts_order_is_not_there(acme: Acme, lab: Lab, client: httpx.Client) -> None:
    placed = acme.order()
    stranger = Acme(lab.facts, client)
    stranger.register()
    assert stranger.post(placed.headers["Location"], None).status_code == 404


def test_an_authorization_can_be_given_up(acme: Acme) -> None:
    placed = acme.order()
    url = placed.json()["authorizations"][0]
    given_up = acme.post(url, {"status": "deactivated"})
    assert given_up.json()["status"] == "deactivated"
    assert acme.post(placed.headers["Location"], None).json()["status"] == "invalid"


def test_a_csr_that_does_not_do_leaves_the_order_ready(
    lab: Lab, acme: Acme, subscriber: Subscriber
) -> None:
    placed = acme.order()
    order = placed.json()
    acme.answer(order, subscriber.token(acme.key))
    p384 = make_csr(new_key()).replace(b"SHAKEN 1234", b"SHAKEN 9999")
    used = enroll(lab, acme.web)
    name = f"SHAKEN 1234 {b64(DER['1234'])}"
    cases = {
        "cannot be read": b"nonsense",
        "signature": p384,
        "account key": make_csr(acme.key),
        "certified before": make_csr(used.key),
        "no TNAuthList": make_csr(new_key(), der=b""),
        "not the order's": make_csr(new_key(), der=DER["567A"]),
        "does not hold": make_csr(new_key(), common_name="SHAKEN Voice 1234"),
    }
    for words, csr in cases.items():
        refused = acme.finalize(order, csr)
        assert problem(refused) == "badCSR", words
        assert words in refused.json()["detail"]
        assert acme.post(placed.headers["Location"], None).json()["status"] == "ready"
    answer = acme.finalize(order, make_csr(new_key(), common_name=name))
    assert answer.json()["status"] == "valid"
    assert acme.post(placed.headers["Location"], None).json() == answer.json()  # idempotent
    again = acme.order().json()
    acme.answer(again, subscriber.token(acme.key))
    repeated = acme.finalize(again, make_csr(new_key(), common_name=name))
    assert "subject was certified before" in repeated.json()["detail"]
