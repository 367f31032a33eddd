"""Grants: default deny, and nothing beyond what was granted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access import Grants, certificate_identities
from kmsd.errors import Denied
from kmsd.settings import Caller

AS1 = "spiffe://example.org/as1"
GRANTS = Grants(
    [
        Caller(id=AS1, profiles=("acme",), types=("shaken", "div"), attest="B"),
        Caller(id="as2.example.org", profiles=("*",), types=("shaken",), attest="A"),
    ]
)


def reason(call: pytest.ExceptionInfo[Denied]) -> str:
    return call.value.reason


def test_a_caller_nobody_named_gets_nothing() -> None:
    with pytest.raises(Denied) as refused:
        GRANTS.of(["spiffe://example.org/other"]).for_profile("acme")
    assert reason(refused) == "PROFILE_NOT_GRANTED"


def test_a_caller_without_an_identity_gets_nothing() -> None:
    with pytest.raises(Denied, match="no identity"):
        GRANTS.of([]).for_profile("acme")


def test_a_grant_for_one_profile_is_none_for_another() -> None:
    with pytest.raises(Denied):
        GRANTS.of([AS1]).for_profile("other")
    assert not GRANTS.of([AS1]).may_see("other")


def test_a_caller_granted_b_cannot_get_an_a() -> None:
    grant = GRANTS.of([AS1]).for_profile("acme")
    grant.check("shaken", "B")
    grant.check("shaken", "C")
    grant.check("div", "")
    with pytest.raises(Denied) as refused:
        grant.check("shaken", "A")
    assert reason(refused) == "ATTEST_NOT_GRANTED"


def test_a_type_that_was_not_granted_is_refused() -> None:
    with pytest.raises(Denied) as refused:
        GRANTS.of([AS1]).for_profile("acme").check("rcd", "")
    assert reason(refused) == "TYPE_NOT_GRANTED"


def test_a_star_is_every_profile() -> None:
    peer = GRANTS.of(["as2.example.org"])
    peer.for_profile("anything").check("shaken", "A")
    assert peer.may_see("anything")


def test_two_identities_of_one_certificate_add_up() -> None:
    GRANTS.of([AS1, "as2.example.org"]).for_profile("acme").check("div", "")


@given(st.text())
def test_no_text_is_an_identity_by_accident(identity: str) -> None:
    if identity not in (AS1, "as2.example.org"):
        with pytest.raises(Denied):
            GRANTS.of([identity]).for_profile("acme")


def test_a_high_attestation_for_one_type_is_none_for_another() -> None:
    grants = Grants(
        [
            Caller(id=AS1, profiles=("acme",), types=("shaken",), attest="C"),
            Caller(id=AS1, profiles=("acme",), types=("div",), attest="A"),
        ]
    )
    grant = grants.of([AS1]).for_profile("acme")
    grant.check("shaken", "C")
    with pytest.raises(Denied) as refused:
        grant.check("shaken", "A")
    assert reason(refused) == "ATTEST_NOT_GRANTED"


def test_entries_of_one_caller_add_up() -> None:
    grants = Grants(
        [
            Caller(id=AS1, profiles=("acme",), types=("shaken",), attest=level)
            for level in ("C", "A", "B")
        ]
    )
    grants.of([AS1]).for_profile("acme").check("shaken", "A")


def test_an_entry_that_names_a_profile_counts_instead_of_the_star() -> None:
    grants = Grants(
        [
            Caller(id=AS1, profiles=("*",), attest="A"),
            Caller(id=AS1, profiles=("acme",), attest="C"),
        ]
    )
    peer = grants.of([AS1])
    peer.for_profile("other").check("shaken", "A")
    with pytest.raises(Denied):
        peer.for_profile("acme").check("shaken", "A")


@given(
    st.lists(st.text().map(str.encode) | st.binary()),
    st.lists(st.text().map(str.encode) | st.binary()),
    st.lists(st.text().map(str.encode) | st.binary()),
)
def test_identities_of_different_kinds_never_meet(
    uris: list[bytes], names: list[bytes], common: list[bytes]
) -> None:
    """Whatever a CA signs: a DNS name spells no URI, and neither spells a CN or a socket."""
    by_uri, by_name, by_common = (
        set(certificate_identities(uris=a, dns_names=b, common_names=c))
        for a, b, c in ((uris, (), ()), ((), names, ()), ((), (), common))
    )
    assert not by_uri & by_name
    assert not (by_uri | by_name) & by_common
    assert not {"unix", "plaintext"} & (by_uri | by_name | by_common)
    together = certificate_identities(uris=uris, dns_names=names, common_names=common)
    assert set(together) == by_uri | by_name | by_common


@pytest.mark.parametrize(
    ("uris", "names", "common", "identities"),
    [
        (
            [b"spiffe://lab/as1"],
            [b"as1.example"],
            [b"x"],
            ["spiffe://lab/as1", "as1.example", "CN=x"],
        ),
        ([b"as1.example.org"], [b"spiffe://lab/as1"], [], []),
        ([], [b"CN=as1", b"unix", b"plaintext", b"a b", b"", b".", b"x@y"], [], []),
        ([b"urn:uuid:1"], [b"*.example.org", b"as1"], [], ["urn:uuid:1", "*.example.org", "as1"]),
        ([b"spiffe://lab/\xff"], [b"\xff"], [b"\xff"], []),
    ],
)
def test_names_of_a_certificate_as_the_configuration_has_them(
    uris: list[bytes], names: list[bytes], common: list[bytes], identities: list[str]
) -> None:
    assert certificate_identities(uris=uris, dns_names=names, common_names=common) == identities


@pytest.mark.parametrize(
    ("identities", "kind"),
    [(["unix"], "unix"), (["plaintext"], "plaintext"), ([AS1, "CN=unix"], "tls"), ([], "tls")],
)
def test_how_a_caller_came_is_said_without_saying_who_it_is(
    identities: list[str], kind: str
) -> None:
    assert GRANTS.of(identities).kind == kind
