"""Every preset against a hostile lab that speaks that STI-CA's dialect and no other.

And the STI-PA's dialects, with an SPC token that a person brings in a file instead.
"""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from kmsd.lab import Lab, csr, running_lab
from kmsd.lab.state import Order
from kmsd.lab.world import World
from tests.contract.tokens import read_identity
from tests.lab.parties import Subscriber, new_key, web
from tests.system import judges
from tests.system.key_room import KeyRoom, Table

HOSTILE: Table = {
    "bad_nonce_share": 0.3,
    "delay_seconds": 0.2,
    "noise": True,
    "retry_after": 0,
}
DIALECTS: dict[str, Table] = {
    "rfc": {},
    "peeringhub": {
        "encoding": "base64",
        "challenge_field": "atc",
        "fingerprint": "spki",
        "empty_payload": "protected_only",
        "chain_media_type": "application/pem",
        "challenge_token": False,
    },
    "martini": {
        "encoding": "base64",
        "challenge_field": "atc",
        "fingerprint": "spki",
        "eab": "required",
        "order_x5u": True,
        "x5u_header": True,
    },
    "acme2certifier": {"encoding": "base64", "challenge_field": "atc"},
}
"""What the lab is switched to, by the preset that must cope with it."""


PAS: dict[str, tuple[Table, Table]] = {
    "bearer": (
        {"authorization": "bearer", "body": "bare"},
        {"pa_authorization": "bearer", "pa_body": "bare"},
    ),
    "basic": ({"authorization": "basic"}, {"pa_authorization": "basic"}),
    "open": ({}, {"pa_list_needs_login": False, "crl_der": True}),
}
"""STI-PAs: the settings of an authority, and what the lab is switched to."""
CRLDPS = {"csr-none": "none", "csr-uri": "uri", "csr-issuer": "uri+issuer"}
"""csr_crldp, by the profile and issuer that have it."""
SPCS = ["1234", *(f"{number}X" for number in range(101, 103 + len(DIALECTS | PAS | CRLDPS)))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), spcs=SPCS, calm=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def room(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyRoom]:
    """One deployment with an issuer for each preset and an authority for each STI-PA."""
    issuers: dict[str, Table] = {preset: {"preset": preset} for preset in DIALECTS}
    issuers["particular"] = {"rules": {"csr_crldp": "uri", "validity_days": 30}}
    issuers["lower"] = {"rules": {"fingerprint_case": "lower"}}
    issuers |= {name: {"rules": {"csr_crldp": value}} for name, value in CRLDPS.items()}
    issuers["martini"] |= {"eab_key_id": lab.facts.eab_kid, "eab_mac_key": lab.facts.eab_mac_file}
    room = KeyRoom(
        tmp_path_factory.mktemp("room"),
        lab,
        profiles={preset: {"issuers": [preset]} for preset in DIALECTS}
        | {name: {"authority": name} for name in PAS}
        | {name: {"issuers": [name]} for name in ("particular", "lower", *CRLDPS)}
        | {"mistaken": {"issuers": ["rfc"]}},
        issuers=issuers,
        authorities={"plain": {}} | {name: settings for name, (settings, _) in PAS.items()},
    )
    with room.running():
        yield room


@pytest.fixture(autouse=True)
def hostile(room: KeyRoom, lab: Lab) -> Iterator[None]:
    lab.set(**HOSTILE)
    yield
    lab.reset()


@pytest.mark.parametrize("preset", DIALECTS)
def test_a_profile_is_enrolled_in_the_dialect_of(
    preset: str, room: KeyRoom, lab: Lab, tmp_path: Path
) -> None:
    lab.set(**DIALECTS[preset])
    active = room.enrolled(preset)
    identity = room.sign(preset)
    assert room.kmsctl("verify", identity, "--authority", "plain").code == 0
    hosted_by_the_sti_ca = "/hosted/" in active["x5u"]
    assert hosted_by_the_sti_ca == (preset == "martini")
    chain = judges.fetch(lab, active["x5u"]).text
    assert judges.openssl_says(lab, chain, tmp_path) == "OK"
    assert judges.secsipidx_says(lab, identity, active["x5u"], tmp_path) == "ok"
    subject = x509.load_pem_x509_certificates(chain.encode())[0].subject.rfc4514_string()
    # martini's CSR has no subject: the STI-CA makes it.
    assert (f"{preset.title()} Telecom" in subject) == (preset != "martini")


@pytest.mark.parametrize("authority", PAS)
def test_a_profile_is_enrolled_with_an_sti_pa_that_is(
    authority: str, room: KeyRoom, lab: Lab
) -> None:
    lab.set(**PAS[authority][1])
    room.enrolled(authority)
    room.sign(authority)


def test_a_lifetime_and_the_url_of_the_crl_can_be_asked_for(room: KeyRoom, lab: Lab) -> None:
    active = room.enrolled("particular")
    leaf = x509.load_pem_x509_certificates(judges.fetch(lab, active["x5u"]).content)[0]
    lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert abs(lifetime - timedelta(days=30)) < timedelta(minutes=1)


@pytest.mark.parametrize("issuer", CRLDPS)
def test_the_csr_names_the_crl_as_the_issuers_csr_crldp_says(
    issuer: str, room: KeyRoom, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.reset()  # calm: this is not about hostility
    received = _csrs_received(monkeypatch)
    active = room.enrolled(issuer)
    (request,) = received()
    leaf = x509.load_pem_x509_certificates(judges.fetch(lab, active["x5u"]).content)[0]
    assert request.public_key() == leaf.public_key()
    points = _distribution_points(request)
    if CRLDPS[issuer] == "none":
        assert points == []
        return
    (asked,), (issued,) = points, _distribution_points(leaf)
    assert asked.full_name == [x509.UniformResourceIdentifier(lab.facts.crl_url)]
    assert issued.crl_issuer
    assert asked.crl_issuer == (issued.crl_issuer if CRLDPS[issuer] == "uri+issuer" else None)


def test_a_fingerprint_in_lower_case_is_for_the_sti_ca_that_demands_it(
    room: KeyRoom, lab: Lab
) -> None:
    lab.set(fingerprint_case="upper")
    refused = room.kmsctl("enroll", "lower")
    assert (refused.code, refused.last["reason"]) == (4, "ACME_ORDER_INVALID")
    assert "fingerprint" in refused.last["metadata"]["problem"]
    assert refused.last["next_step"]
    lab.set(fingerprint_case="lower")
    room.enrolled("lower")
    room.sign("lower")


def test_the_wrong_dialect_is_refused_in_the_sti_cas_own_words(room: KeyRoom, lab: Lab) -> None:
    lab.set(**DIALECTS["acme2certifier"])
    refused = room.kmsctl("enroll", "mistaken")
    assert (refused.code, refused.last["reason"]) == (4, "ACME_MALFORMED")
    assert "identifier" in refused.last["metadata"]["problem"]
    assert "preset" in refused.last["next_step"]
    lab.set(**DIALECTS["rfc"], encoding="base64url", challenge_field="tkauth")
    room.enrolled("mistaken")


def test_an_spc_token_that_a_person_brings_in_a_file_is_checked_and_used(
    lab: Lab, tmp_path: Path
) -> None:
    """For hosts that the STI-PA does not let in: kmsd says what to ask it for, and waits."""
    lab.set(pa_list_needs_login=False)
    file = tmp_path / "tokens" / "1234"
    file.parent.mkdir()
    offline: Table = {"token_file": f"{file.parent}/{{spc}}", "user": "", "password": ""}
    room = KeyRoom(tmp_path / "room", lab, authorities={"lab": offline})
    with room.running(), web(lab.facts) as client:
        subscriber = Subscriber(lab.facts, client)
        with room.following("enroll", "acme") as enrolling:
            waiting = enrolling.until("reason", "SPC_TOKEN_FILE_MISSING")
            assert str(file) in waiting["message"]
            next_step = waiting["credential"]["trouble"]["next_step"]
            fingerprint = re.search("SHA256 [0-9A-F:]{95}", next_step)
            assert fingerprint

            file.write_text(subscriber.token(new_key()))
            refused = room.kmsctl("enroll", "acme")
            assert (refused.code, refused.last["reason"]) == (4, "SPC_TOKEN_REJECTED")
            assert fingerprint[0] in refused.last["message"]
            assert enrolling.end().code == 4
        file.write_text(subscriber.token(new_key(), fingerprint=fingerprint[0]))
        active = room.enrolled()
        assert read_identity(room.sign()).x5u == active["x5u"]


def _csrs_received(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], list[x509.CertificateSigningRequest]]:
    """What the lab's STI-CA is asked to certify from now on; by itself it keeps no CSR."""
    received: list[bytes] = []

    def check(der: bytes, order: Order, world: World) -> csr.Request:
        received.append(der)
        return csr.check_csr(der, order, world)

    monkeypatch.setattr("kmsd.lab.orders.check_csr", check)
    return lambda: [x509.load_der_x509_csr(der) for der in received]


def _distribution_points(
    of: x509.Certificate | x509.CertificateSigningRequest,
) -> list[x509.DistributionPoint]:
    found = (extension.value for extension in of.extensions)
    return [
        point for value in found if isinstance(value, x509.CRLDistributionPoints) for point in value
    ]
