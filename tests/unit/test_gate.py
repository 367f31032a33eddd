"""The acceptance gate: one certificate for each rule, breaking just that one."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from kmsd import tnauthlist
from kmsd.certs import spki_sha256
from kmsd.errors import Invalid, PeerRefused
from kmsd.gate import Accepted, accept
from kmsd.leaf import LEAF_RULES, LONGEST, SHORTEST
from kmsd.path import CLOCK_SKEW, PATH_RULES
from tests.unit.sti import (
    CRL_URL,
    DAY,
    NOW,
    POLICY,
    SPC,
    Ca,
    World,
    armoured,
    crl,
    name,
    new_key,
    pem,
    point,
    policies,
    resigned,
    scope,
    spki,
    usage,
)

WORLD = World()
POLICIES = ("2.16.840.1.114569.1.1",)


def accepted(chain: str, world: World = WORLD, **changes: Any) -> Accepted:
    terms: dict[str, Any] = {
        "public_key": spki(WORLD.key.public_key()),
        "spc": SPC,
        "now": NOW,
        "roots": world.roots,
        "crl": None,
        "policy_oids": POLICIES,
        "country": "US",
    }
    return accept(chain, **(terms | changes))


def broken(chain: str, world: World = WORLD, **changes: Any) -> str:
    with pytest.raises(PeerRefused) as caught:
        accepted(chain, world, **changes)
    error = caught.value
    assert (error.reason, error.peer) == ("CHAIN_NOT_ACCEPTED", "sti-ca")
    assert f"({error.metadata['rule']})" in error.message
    assert error.metadata["rules"].split(",")[0] == error.metadata["rule"]
    return error.metadata["rules"]


def test_a_chain_by_the_profile_is_accepted() -> None:
    leaf = WORLD.leaf()
    taken = accepted(pem(leaf, WORLD.ca.certificate))
    assert taken == Accepted(
        pem(leaf, WORLD.ca.certificate),
        f"{leaf.serial_number:x}",
        spki_sha256(spki(WORLD.key.public_key())),
        NOW - 60,
        NOW + 30 * DAY,
        WORLD.root.certificate.subject.rfc4514_string(),
    )


def test_openssl_accepts_the_same_chain(tmp_path: Path) -> None:
    files = {"root": WORLD.root.certificate, "ca": WORLD.ca.certificate, "leaf": WORLD.leaf()}
    for file, certificate in files.items():
        (tmp_path / file).write_text(pem(certificate))
    command = f"openssl verify -attime {NOW} -x509_strict -CAfile root -untrusted ca leaf"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "leaf: OK\n"), done.stderr


def test_text_around_the_certificates_is_not_published() -> None:
    chain = WORLD.chain()
    assert accepted("subject=somebody\r\n" + chain.replace("\n", "\r\n")).chain == chain


def test_the_root_may_be_in_the_chain_or_not() -> None:
    leaf, ca, root = WORLD.leaf(), WORLD.ca.certificate, WORLD.root.certificate
    assert accepted(pem(leaf, ca, root)).anchor == root.subject.rfc4514_string()
    assert accepted(pem(leaf), roots=(pem(ca),)).anchor == ca.subject.rfc4514_string()
    assert accepted(pem(leaf, ca), roots=(pem(ca),)).anchor == ca.subject.rfc4514_string()


def test_a_root_that_was_renewed_is_found_among_expired_ones() -> None:
    old = Ca.root(key=WORLD.root.key, start=NOW - 2 * DAY, end=NOW - DAY)
    assert accepted(WORLD.chain(), roots=(pem(old.certificate), *WORLD.roots))


def test_a_serial_number_attribute_in_the_subject_is_optional() -> None:
    subject = name(f"SHAKEN {SPC} 0001", SERIAL_NUMBER="7")
    assert accepted(WORLD.chain(subject=subject))


def test_other_trust_domains_have_other_countries_and_policies() -> None:
    leaf = WORLD.chain(
        subject=name(f"SHAKEN {SPC}", c="CA"),
        policies=(policies(x509.ObjectIdentifier("1.2.3")), False),
    )
    assert accepted(leaf, country="CA", policy_oids=("1.2.3",))
    assert accepted(leaf, country="", policy_oids=())


def test_a_country_is_one_in_every_trust_domain() -> None:
    leaf = WORLD.chain(subject=name(f"SHAKEN {SPC}", c="us"))
    assert broken(leaf, country="") == "subject"


def test_an_intermediate_may_use_p384_and_sha384() -> None:
    root = Ca.root(key=ec.generate_private_key(ec.SECP384R1()), hash=hashes.SHA384())
    ca = root.under(hash=hashes.SHA384())
    chain = pem(ca.issue(WORLD.key.public_key()), ca.certificate)
    assert accepted(chain, roots=(pem(root.certificate),))


def with_key_usage(der: str, critical: bool = True) -> dict[str, Any]:
    oid = x509.KeyUsage.oid
    return {"ku": (x509.UnrecognizedExtension(oid, bytes.fromhex(der)), critical)}


LONG_ARC = x509.ObjectIdentifier("2.16.840.1.114569.1.11")
LEAVES: list[tuple[str, dict[str, Any]]] = [
    ("serial", {"serial": 7}),
    ("serial", {"serial": (1 << 56) - 1}),
    ("signature_algorithm", {"hash": hashes.SHA384()}),
    ("subject", {"subject": name(f"SHAKEN {SPC}", o="")}),
    ("subject", {"subject": name(f"SHAKEN {SPC}", c="")}),
    ("subject", {"subject": name(f"SHAKEN {SPC}", c="CA")}),
    ("subject", {"subject": name(f"SHAKEN {SPC}", ORGANIZATION_NAME="Two")}),
    ("subject", {"subject": name(f"SHAKEN {SPC}", COMMON_NAME="Two")}),
    ("common_name", {"subject": name("SHAKEN 567A")}),
    ("common_name", {"subject": name(f"SHAKEN {SPC}5")}),
    ("common_name", {"subject": name(f"SHAKEN Company {SPC}")}),
    ("basic_constraints", {"bc": None}),
    ("basic_constraints", {"bc": (x509.BasicConstraints(False, None), False)}),
    ("key_usage", {"ku": None}),
    ("key_usage", {"ku": (usage("digital_signature"), False)}),
    ("key_usage", {"ku": (usage("digital_signature", "content_commitment"), True)}),
    ("key_usage", with_key_usage("03020080")),
    ("subject_key_id", {"ski": None}),
    ("subject_key_id", {"ski": (x509.SubjectKeyIdentifier(bytes(20)), False)}),
    ("authority_key_id", {"aki": None}),
    ("authority_key_id", {"aki": (x509.AuthorityKeyIdentifier(bytes(20), None, None), False)}),
    ("policies", {"policies": None}),
    ("policies", {"policies": (policies(POLICY, LONG_ARC), False)}),
    ("policies", {"policies": (policies(LONG_ARC), False)}),
    ("crl_distribution", {"crldp": None}),
    (
        "crl_distribution",
        {"crldp": (x509.CRLDistributionPoints([point(CRL_URL), point(CRL_URL)]), False)},
    ),
    ("crl_distribution", {"crldp": (x509.CRLDistributionPoints([point()]), False)}),
    (
        "crl_distribution",
        {"crldp": (x509.CRLDistributionPoints([point(CRL_URL, CRL_URL)]), False)},
    ),
    (
        "crl_distribution",
        {"crldp": (x509.CRLDistributionPoints([point(CRL_URL, issuer=None)]), False)},
    ),
    (
        "crl_distribution",
        {
            "crldp": (
                x509.CRLDistributionPoints(
                    [point(CRL_URL, reasons=frozenset({x509.ReasonFlags.key_compromise}))]
                ),
                False,
            )
        },
    ),
    ("one_spc", {"scope": None}),
    ("one_spc", {"scope": (scope(tnauthlist.spc_list("567A")), False)}),
    ("one_spc", {"scope": (scope(b"1234"), False)}),
    (
        "one_spc",
        {
            "scope": (
                scope(
                    tnauthlist.encode(
                        tnauthlist.TnAuthList((tnauthlist.Spc(SPC), tnauthlist.One("1")))
                    )
                ),
                False,
            )
        },
    ),
    (
        "other_extensions",
        {"more": (x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.3")]), False)},
    ),
    ("criticality", {"scope": (scope(tnauthlist.spc_list(SPC)), True)}),
    ("criticality", {"policies": (policies(POLICY), True)}),
    ("validity_period", {"end": NOW - 60 + SHORTEST - 1}),
    ("validity_period", {"end": NOW - 60 + LONGEST + 1}),
    ("within_issuers", {"start": NOW - 60, "end": NOW + 3 * 365 * DAY}),
    ("valid_now", {"start": NOW + CLOCK_SKEW + 1}),
    ("valid_now", {"start": NOW - 2 * DAY, "end": NOW - 1}),
]


@pytest.mark.parametrize(("rule", "changes"), LEAVES)
def test_a_leaf_that_breaks_one_rule_is_refused_for_it(rule: str, changes: dict[str, Any]) -> None:
    world = WORLD
    if rule == "within_issuers":
        world = World(root=Ca.root(end=NOW + 2 * 365 * DAY))
        chain = pem(world.ca.issue(WORLD.key.public_key(), **changes), world.ca.certificate)
        assert broken(chain, world) == rule
        return
    assert broken(world.chain(**changes)) == rule


def test_a_leaf_that_is_a_ca_breaks_two_rules() -> None:
    chain = WORLD.chain(bc=(x509.BasicConstraints(True, None), True))
    assert broken(chain) == "end_entity,basic_constraints"


def test_a_leaf_that_may_not_sign_breaks_two_rules() -> None:
    assert broken(WORLD.chain(ku=(usage("crl_sign"), True))) == "end_entity,key_usage"


def test_an_unknown_critical_extension_breaks_three_rules() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")
    rules = "end_entity,other_extensions,criticality"
    assert broken(WORLD.chain(more=(unknown, True))) == rules


@pytest.mark.parametrize("length", [SHORTEST, LONGEST])
def test_the_shortest_and_the_longest_validity_are_accepted(length: int) -> None:
    assert accepted(WORLD.chain(end=NOW - 60 + length))


def test_a_leaf_of_a_ca_whose_clock_is_a_little_ahead_is_accepted() -> None:
    assert accepted(WORLD.chain(start=NOW + CLOCK_SKEW)).not_before == NOW + CLOCK_SKEW


def test_an_x509_v1_or_v2_certificate_is_refused() -> None:
    ca = pem(WORLD.ca.certificate)
    first = resigned(WORLD.leaf(), WORLD.ca.key, "a003020102", "")
    assert broken(first + ca) == "version"
    second = resigned(WORLD.leaf(), WORLD.ca.key, "a003020102", "a003020101")
    assert broken(second + ca) == "readable"


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_negative_serial_number_is_refused() -> None:
    leaf = resigned(WORLD.leaf(), WORLD.ca.key, "021001000000", "021081000000")
    assert broken(leaf + pem(WORLD.ca.certificate)) == "serial"


def test_a_chain_for_another_key_is_refused() -> None:
    other = pem(WORLD.ca.issue(new_key().public_key()), WORLD.ca.certificate)
    assert broken(other) == "own_key"
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    assert broken(pem(WORLD.ca.issue(rsa_key), WORLD.ca.certificate)) == (
        "own_key,p256,subject_key_id"
    )


# --- the chain above the leaf


def test_a_chain_out_of_order_is_refused() -> None:
    leaf, ca, root = WORLD.leaf(), WORLD.ca.certificate, WORLD.root.certificate
    assert broken(pem(leaf, root, ca)).startswith("chain_order")
    assert broken(pem(leaf, ca, leaf)) == "chain_order"
    assert "own_key" in broken(pem(ca, leaf))


def test_a_chain_to_nobody_in_the_list_is_refused() -> None:
    assert broken(WORLD.chain(), roots=World().roots) == "trusted_path"
    assert broken(WORLD.chain(), roots=()) == "trusted_path"
    assert broken(pem(WORLD.leaf())) == "trusted_path"


def test_a_root_that_came_with_the_chain_is_not_trusted() -> None:
    chain = pem(WORLD.leaf(), WORLD.ca.certificate, WORLD.root.certificate)
    assert broken(chain, roots=()) == "trusted_path"


def test_a_forged_signature_is_refused() -> None:
    forged = Ca(new_key(), WORLD.ca.certificate)
    chain = pem(forged.issue(WORLD.key.public_key()), WORLD.ca.certificate)
    assert broken(chain) == "chain_order"


UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)


@pytest.mark.parametrize(
    ("rules", "changes"),
    [
        ("authorities", {"bc": None}),
        ("authorities", {"bc": (x509.BasicConstraints(False, None), True)}),
        ("authorities", {"ku": (usage("crl_sign"), True)}),
        ("authorities", {"scope": (scope(tnauthlist.spc_list(SPC)), False)}),
        ("authorities", {"more": UNKNOWN}),
        ("valid_now", {"start": NOW + 2 * CLOCK_SKEW}),
        ("valid_now,within_issuers", {"end": NOW - 1}),
        ("chain_order,trusted_path", {"hash": hashes.SHA512()}),
    ],
)
def test_an_intermediate_that_is_no_good_is_refused(rules: str, changes: dict[str, Any]) -> None:
    ca = WORLD.root.under(**changes)
    root = WORLD.root.certificate
    chain = pem(ca.issue(WORLD.key.public_key()), ca.certificate)
    if rules.startswith("chain_order"):
        chain += pem(root)
        rules = "chain_order"
    assert broken(chain) == rules


def test_an_intermediate_without_key_usage_or_with_a_listed_oddity_is_taken() -> None:
    ca = WORLD.root.under(ku=None)
    assert accepted(pem(ca.issue(WORLD.key.public_key()), ca.certificate))
    odd = WORLD.root.under(more=UNKNOWN)
    assert accepted(pem(odd.issue(WORLD.key.public_key())), roots=(pem(odd.certificate),))


def test_a_path_longer_than_a_ca_allows_is_refused() -> None:
    root = Ca.root(bc=(x509.BasicConstraints(True, 1), True))
    first = root.under("SHAKEN One", bc=(x509.BasicConstraints(True, 0), True))
    second = first.under("SHAKEN Two")
    key = WORLD.key.public_key()
    roots = (pem(root.certificate),)
    assert accepted(pem(first.issue(key), first.certificate), roots=roots)
    long = pem(second.issue(key), second.certificate, first.certificate)
    assert broken(long, roots=roots) == "authorities"


def test_an_rsa_authority_leads_nowhere() -> None:
    root = Ca.root(key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    chain = pem(root.issue(WORLD.key.public_key()), root.certificate)
    rules = broken(chain, roots=(pem(root.certificate),))
    assert "chain_order" in rules
    assert "signature_algorithm" in rules


# --- the CRL

ISSUER = WORLD.ca.certificate.subject
SERIAL = WORLD.leaf().serial_number


def der(*entries: tuple[x509.Name | None, int], **changes: Any) -> bytes:
    return crl(*entries, **changes).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "entries",
    [
        [(ISSUER, SERIAL)],
        [(name("Other"), 1), (ISSUER, 5), (None, SERIAL)],
        [(name("SHAKEN  test intermediate", c="us", o=" EXAMPLE"), SERIAL)],
    ],
)
def test_a_leaf_on_the_crl_is_refused(entries: list[tuple[x509.Name | None, int]]) -> None:
    assert broken(WORLD.chain(), crl=der(*entries)) == "revoked"
    as_pem = crl(*entries).public_bytes(Encoding.PEM)
    assert broken(WORLD.chain(), crl=as_pem) == "revoked"


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [(None, SERIAL)],  # an entry of the CRL's own issuer
        [(name("Other"), SERIAL)],
        [(ISSUER, 5), (name("Other"), 6), (None, SERIAL)],
        [(ISSUER, SERIAL + 1)],
    ],
)
def test_the_same_serial_number_of_another_issuer_is_no_matter(
    entries: list[tuple[x509.Name | None, int]],
) -> None:
    assert accepted(WORLD.chain(), crl=der(*entries))


def test_an_intermediate_on_the_crl_is_refused() -> None:
    ca = WORLD.ca.certificate
    listed = der((WORLD.root.certificate.subject, ca.serial_number))
    assert broken(WORLD.chain(), crl=listed) == "revoked"


def test_a_crl_of_the_certificates_own_issuer_needs_no_certificate_issuer() -> None:
    assert broken(WORLD.chain(), crl=der((None, SERIAL), issuer=ISSUER)) == "revoked"


def test_a_crl_or_a_list_that_cannot_be_read_is_an_error_of_its_own() -> None:
    for bad in (b"", b"junk", der((ISSUER, 1))[:-1], b"-----BEGIN X509 CRL-----"):
        with pytest.raises(Invalid) as caught:
            accepted(WORLD.chain(), crl=bad)
        assert caught.value.reason == "CRL_MALFORMED"
    with pytest.raises(Invalid) as caught:
        accepted(WORLD.chain(), roots=("junk",))
    assert caught.value.reason == "ROOT_MALFORMED"


def test_a_crl_entry_whose_issuer_is_no_name_is_an_error() -> None:
    entry = (
        x509.RevokedCertificateBuilder()
        .serial_number(1)
        .revocation_date(WORLD.leaf().not_valid_before_utc)
        .add_extension(
            x509.CertificateIssuer([x509.UniformResourceIdentifier("https://h/")]), critical=True
        )
        .build()
    )
    odd = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ISSUER)
        .last_update(WORLD.leaf().not_valid_before_utc)
        .next_update(WORLD.leaf().not_valid_after_utc)
        .add_revoked_certificate(entry)
        .sign(WORLD.ca.key, hashes.SHA256())
    )
    with pytest.raises(Invalid) as caught:
        accepted(WORLD.chain(), crl=odd.public_bytes(Encoding.DER))
    assert caught.value.reason == "CRL_MALFORMED"


# --- what is no chain


def test_a_private_key_in_the_chain_is_named() -> None:
    key = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"
    assert broken(WORLD.chain() + key) == "private_key"


@given(st.text(max_size=60))
def test_arbitrary_text_is_refused_with_a_rule(text: str) -> None:
    assert broken(text) == "readable"


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.data())
def test_one_changed_byte_is_refused_with_a_rule(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    assert broken(armoured(bytes(raw)) + pem(WORLD.ca.certificate))


GOOD = WORLD.leaf().public_bytes(Encoding.DER)


def test_a_leaf_that_points_to_another_crl_is_refused() -> None:
    assert accepted(WORLD.chain(), crl_url=CRL_URL)
    assert broken(WORLD.chain(), crl_url="https://other.example.org/crl") == "crl_distribution"


def test_every_rule_says_what_it_is_for() -> None:
    for label, rule in (*LEAF_RULES, *PATH_RULES):
        assert rule.__doc__, label


def test_an_error_with_many_failed_rules_stays_readable() -> None:
    leaf = WORLD.chain(bc=None, ski=None, aki=None, policies=None, crldp=None, scope=None)
    with pytest.raises(PeerRefused) as caught:
        accepted(leaf)
    assert "2 more rules failed" in caught.value.message
    assert caught.value.metadata["rules"].count(",") == 5
