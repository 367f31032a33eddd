"""Revocation, the STI-PA's CRL, and renewal information."""

import datetime
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, CRLEntryExtensionOID

from kmsd.lab import Lab, renewal
from tests.lab.parties import DER, Acme, Enrolled, Subscriber, b64, enroll, new_key, problem


def revoke(acme: Acme, der: bytes, *, by_key: Any = None, **more: Any) -> httpx.Response:
    return acme.post(acme.directory["revokeCert"], {"certificate": b64(der), **more}, by_key=by_key)


def crl(lab: Lab, client: httpx.Client) -> x509.CertificateRevocationList:
    answer = client.get(lab.facts.crl_url, headers={"Accept": "application/pkix-crl"})
    assert answer.headers["content-type"] == "application/pkix-crl"
    return x509.load_pem_x509_crl(answer.content)


def entry(lab: Lab, client: httpx.Client, enrolled: Enrolled) -> x509.RevokedCertificate | None:
    serial = enrolled.leaf.serial_number
    return crl(lab, client).get_revoked_certificate_by_serial_number(serial)


def issuer_of(wanted: x509.RevokedCertificate, listed: x509.CertificateRevocationList) -> x509.Name:
    """By RFC 5280 section 5.3.3: its own, or that of the entry before it."""
    issuer = listed.issuer
    for each in listed:
        for extension in each.extensions:
            if isinstance(extension.value, x509.CertificateIssuer):
                assert extension.critical
                (issuer,) = extension.value.get_values_for_type(x509.DirectoryName)
        if each.serial_number == wanted.serial_number:
            return issuer
    raise AssertionError("it is not listed")


def test_an_issuer_is_said_once_for_all_that_follow(lab: Lab, client: httpx.Client) -> None:
    for _ in range(2):
        enrolled = enroll(lab, client)
        assert revoke(enrolled.acme, enrolled.der).status_code == 200
    said = [each.extensions for each in crl(lab, client)]
    assert any(each.oid == CRLEntryExtensionOID.CERTIFICATE_ISSUER for each in said[0])
    assert not any(each.oid == CRLEntryExtensionOID.CERTIFICATE_ISSUER for each in said[-1])


def test_a_revoked_certificate_is_on_the_list_with_its_issuer(
    lab: Lab, client: httpx.Client
) -> None:
    enrolled = enroll(lab, client)
    before = crl(lab, client)
    assert entry(lab, client, enrolled) is None
    answer = revoke(enrolled.acme, enrolled.der, reason=1)
    assert (answer.status_code, answer.content) == (200, b"")
    listed = entry(lab, client, enrolled)
    assert listed is not None
    assert issuer_of(listed, crl(lab, client)) == enrolled.leaf.issuer
    reason = listed.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason == x509.ReasonFlags.key_compromise
    number = x509.CRLNumber
    after = crl(lab, client).extensions.get_extension_for_class(number).value.crl_number
    assert after > before.extensions.get_extension_for_class(number).value.crl_number


def test_the_list_is_indirect_and_signed_under_the_root(
    lab: Lab, client: httpx.Client, tmp_path: Path
) -> None:
    enrolled = enroll(lab, client)
    listed = crl(lab, client)
    point = listed.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert point.critical
    assert point.value.indirect_crl
    assert [name.value for name in point.value.full_name or ()] == [lab.facts.crl_url]
    (where,) = listed.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert where.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    chain = x509.load_pem_x509_certificates(client.get(where.access_location.value).content)
    assert chain[0].subject == listed.issuer
    assert listed.is_signature_valid(chain[0].public_key())  # type: ignore[arg-type]
    root = x509.load_pem_x509_certificate(Path(lab.facts.pa_root).read_bytes())
    chain[0].verify_directly_issued_by(root)
    crldp = enrolled.leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    assert [name.value for name in crldp.value[0].crl_issuer or ()] == [listed.issuer]
    file = tmp_path / "list.pem"
    file.write_bytes(client.get(lab.facts.crl_url).content)
    shown = subprocess.run(
        ["openssl", "crl", "-in", str(file), "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "Indirect CRL" in shown
    (tmp_path / "signer.pem").write_bytes(client.get(where.access_location.value).content)
    verified = subprocess.run(
        ["openssl", "crl", "-verify", "-CAfile", "signer.pem", "-in", str(file), "-noout"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert verified.stderr == "verify OK\n"


def test_the_name_of_a_renewal_is_that_of_rfc_9773() -> None:
    aki = bytes.fromhex("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")
    key = new_key()
    name = x509.Name([])
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 0x87654321, moment, moment)
        .add_extension(x509.AuthorityKeyIdentifier(aki, None, None), critical=False)
        .sign(key, hashes.SHA256())
    )
    assert renewal.name_of(certificate) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


def test_the_certificates_own_key_may_revoke_it(lab: Lab, client: httpx.Client) -> None:
    enrolled = enroll(lab, client)
    assert revoke(enrolled.acme, enrolled.der, by_key=enrolled.key).status_code == 200
    assert entry(lab, client, enrolled) is not None


def test_an_account_that_may_certify_the_same_code_may_revoke(
    lab: Lab, client: httpx.Client, acme: Acme, subscriber: Subscriber
) -> None:
    enrolled = enroll(lab, client)
    refused = revoke(acme, enrolled.der)
    assert (refused.status_code, problem(refused)) == (403, "unauthorized")
    assert problem(revoke(acme, enrolled.der, by_key=new_key())) == "unauthorized"
    acme.answer(acme.order().json(), subscriber.token(acme.key))
    assert revoke(acme, enrolled.der).status_code == 200


def test_revocations_that_make_no_sense_are_refused(lab: Lab, client: httpx.Client) -> None:
    enrolled = enroll(lab, client)
    acme = enrolled.acme
    assert problem(revoke(acme, b"nonsense")) == "malformed"
    root = Path(lab.facts.ca_root).read_text()
    der = x509.load_pem_x509_certificate(root.encode())
    assert revoke(acme, der.public_bytes(Encoding.DER)).status_code == 404
    for reason in (7, 8, 11, -1, "1", True):
        assert problem(revoke(acme, enrolled.der, reason=reason)) == "badRevocationReason"
    assert revoke(acme, enrolled.der).status_code == 200
    assert problem(revoke(acme, enrolled.der)) == "alreadyRevoked"


@pytest.mark.parametrize("fault", ["foreign", "expired", "wrong_idp"])
def test_each_fault_of_the_list_shows(lab: Lab, client: httpx.Client, fault: str) -> None:
    good = crl(lab, client)
    lab.set(crl=fault)
    bad = crl(lab, client)
    point = x509.IssuingDistributionPoint
    shown = {
        "foreign": good.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        != bad.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier),
        "expired": (bad.next_update_utc or bad.last_update_utc) < good.last_update_utc,
        "wrong_idp": good.extensions.get_extension_for_class(point)
        != bad.extensions.get_extension_for_class(point),
    }
    assert [name for name, seen in shown.items() if seen] == [fault]


def test_the_list_comes_as_der_or_as_garbage_by_switch(lab: Lab, client: httpx.Client) -> None:
    lab.set(crl_der=True)
    assert x509.load_der_x509_crl(client.get(lab.facts.crl_url).content)
    lab.set(crl="garbage")
    with pytest.raises(ValueError, match=r"\w"):
        crl(lab, client)


def ari_name(leaf: x509.Certificate) -> str:
    aki = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    serial = leaf.serial_number
    content = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return f"{b64(aki.key_identifier or b'')}.{b64(content)}"


def test_renewal_information_is_offered_by_switch(lab: Lab, client: httpx.Client) -> None:
    enrolled = enroll(lab, client)
    assert "renewalInfo" not in enrolled.acme.directory
    lab.set(ari=True)
    base = client.get(lab.facts.ca_directory).json()["renewalInfo"]
    url = f"{base}/{ari_name(enrolled.leaf)}"
    later = client.get(url)
    assert later.headers["Retry-After"] == "21600"
    window = later.json()["suggestedWindow"]
    assert window["start"] < window["end"] < enrolled.leaf.not_valid_after_utc.isoformat()
    lab.set(ari_now=True)
    assert client.get(url).json()["suggestedWindow"]["end"] < window["start"]
    assert client.get(f"{base}/nothing").status_code == 404


def test_renewal_information_is_wrong_in_one_way_by_switch(lab: Lab, client: httpx.Client) -> None:
    enrolled = enroll(lab, client)
    lab.set(ari=True, ari_retry_after=7)
    base = client.get(lab.facts.ca_directory).json()["renewalInfo"]

    def told(fault: str) -> tuple[Any, str | None]:
        lab.set(renewal=fault)
        answer = client.get(f"{base}/{ari_name(enrolled.leaf)}")
        return answer.json().get("suggestedWindow"), answer.headers.get("Retry-After")

    good, later = told("")
    assert later == "7"
    assert told("no_retry_after") == (good, None)
    assert told("no_window") == (None, "7")
    assert told("backwards")[0] == {"start": good["end"], "end": good["start"]}
    assert told("empty")[0] == {"start": good["start"], "end": good["start"]}
    assert told("no_offset")[0] == {name: time.rstrip("Z") for name, time in good.items()}
    assert told("not_times")[0] == {"start": "soon", "end": "later"}


def test_a_certificate_is_replaced_once(lab: Lab, client: httpx.Client) -> None:
    enrolled = enroll(lab, client)
    lab.set(ari=True)
    name = ari_name(enrolled.leaf)
    first = enrolled.acme.order(replaces=name)
    assert first.json()["replaces"] == name
    again = enrolled.acme.order(replaces=name)
    assert (again.status_code, problem(again)) == (409, "alreadyReplaced")
    assert problem(enrolled.acme.order(b64(DER["567A"]), replaces=name)) == "malformed"
    assert problem(enrolled.acme.order(replaces="nothing")) == "malformed"
