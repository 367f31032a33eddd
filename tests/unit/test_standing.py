"""Whether chains that were accepted once still would be."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kmsd.errors import Invalid
from kmsd.model import Active, Certificate, Credential, Keyed
from kmsd.standing import NOT_TRUSTED, REVOKED, Distrusted, distrusted
from tests.unit.sti import NOW, Ca, World, crl, pem
from tests.unit.test_enrollment import BIRTH

WORLD = World()
ANOTHER = World(Ca.root("Another ROOT"))
ROOTS = WORLD.roots + ANOTHER.roots


def credential(number: int, chain: str, issuer: str = "ca") -> Credential:
    certificate = Certificate(chain, issuer, "https://ca/order/1", "01", "cd" * 32, NOW, NOW + 9)
    state = Active(BIRTH, certificate, "https://cr/1", NOW, 1)
    return Credential(f"{number:016x}", f"p{number}", "1234", f"{number:032x}", NOW, state)


FIRST = credential(1, WORLD.chain(serial=11))
SECOND = credential(2, WORLD.chain(serial=12))
OTHER = credential(3, ANOTHER.chain(serial=11), "another")
ALL = (FIRST, SECOND, OTHER)


def der(listed: x509.CertificateRevocationList) -> bytes:
    return listed.public_bytes(Encoding.DER)


def reasons(*found: Distrusted) -> dict[str, str]:
    return {one.credential: one.reason for one in found}


def test_nothing_is_said_of_what_is_listed_and_not_revoked() -> None:
    assert distrusted(ALL, ROOTS, None, NOW) == ()
    assert distrusted(ALL, ROOTS, der(crl()), NOW) == ()


def test_what_is_on_the_crl_is_found_by_issuer_and_serial() -> None:
    listed = crl((WORLD.ca.certificate.subject, 12), (None, 99))
    (found,) = distrusted(ALL, ROOTS, der(listed), NOW)
    assert (found.credential, found.profile, found.issuer) == (SECOND.id, "p2", "ca")
    assert (found.reason, found.at) == (REVOKED, NOW)
    assert "CRL" in found.message


def test_an_entry_without_a_certificate_issuer_has_that_of_the_one_before() -> None:
    listed = crl(
        (ANOTHER.root.certificate.subject, 5), (WORLD.ca.certificate.subject, 3), (None, 11)
    )
    assert reasons(*distrusted(ALL, ROOTS, der(listed), NOW))[FIRST.id] == REVOKED


def test_all_that_hang_on_a_revoked_sti_ca_are_found() -> None:
    ca = WORLD.ca.certificate
    listed = crl((ca.issuer, ca.serial_number))
    found = distrusted((*ALL, credential(4, WORLD.chain(serial=14))), ROOTS, der(listed), NOW)
    assert reasons(*found) == {FIRST.id: REVOKED, SECOND.id: REVOKED, f"{4:016x}": REVOKED}


def test_those_whose_sti_ca_left_the_list_are_found() -> None:
    found = distrusted(ALL, ANOTHER.roots, None, NOW)
    assert reasons(*found) == {FIRST.id: NOT_TRUSTED, SECOND.id: NOT_TRUSTED}


def test_a_leaf_that_hangs_on_a_listed_sti_ca_itself_is_looked_at_each_by_itself() -> None:
    roots = (pem(WORLD.ca.certificate), *ANOTHER.roots)
    alone = credential(4, pem(WORLD.leaf(serial=21)))
    foreign = credential(5, pem(Ca.root("Third ROOT").issue(WORLD.key.public_key())))
    assert reasons(*distrusted((alone, foreign), roots, None, NOW)) == {foreign.id: NOT_TRUSTED}


def test_what_has_no_certificate_yet_is_passed_over() -> None:
    coming = Credential("0" * 16, "acme", "1234", "ab" * 16, NOW, Keyed(BIRTH))
    assert distrusted([coming], (), None, NOW) == ()


def test_trust_material_that_cannot_be_read_is_told() -> None:
    with pytest.raises(Invalid):
        distrusted(ALL, ROOTS, b"no crl", NOW)
    with pytest.raises(Invalid):
        distrusted(ALL, ("no root",), None, NOW)
