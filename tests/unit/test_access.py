"""Grants: default deny, and nothing beyond what was granted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access import Grants
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
