"""Typed claims to messages, and answers to values."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmsapi.v1 import signing_pb2 as pb
from kmsd_client import ActiveCredential, Base, Div, Rcd, Rph, Shaken, Signed, Synced, Withdrawn
from kmsd_client.answers import change_of
from kmsd_client.passports import Passport, to_message
from kmsd_client.watching import Resync, Told

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(TEXT, st.lists(TEXT, max_size=4))
def test_text_with_a_colon_is_a_uri_and_all_other_a_number(orig: str, dest: Sequence[str]) -> None:
    message = to_message(Base(orig, dest))
    assert (message.orig_uri if ":" in orig else message.orig_tn) == orig
    assert list(message.dest_uri) == [text for text in dest if ":" in text]
    assert list(message.dest_tn) == [text for text in dest if ":" not in text]


def test_one_dest_needs_no_list() -> None:
    assert to_message(Base("1", "sip:bob@example.com")).dest_uri == ["sip:bob@example.com"]
    assert to_message(Base("1", ("2", "3"))).dest_tn == ["2", "3"]


@pytest.mark.parametrize(("attest", "level"), [("A", 1), ("B", 2), ("C", 3), ("D", 0), ("", 0)])
def test_an_attestation_that_is_none_is_left_to_the_signer(attest: Any, level: int) -> None:
    assert to_message(Shaken("1", "2", attest)).shaken.attest == level


def test_every_type_carries_its_claims() -> None:
    message = to_message(Shaken("1", "2", "A", "an-origid", 7))
    assert (message.shaken.origid, message.iat) == ("an-origid", 7)
    assert to_message(Div("1", "2", "3", 7)).div == pb.Div(tn="3")
    assert to_message(Div("1", "2", "tel:3", 7)).div == pb.Div(uri="tel:3")
    assert to_message(Rph("1", "2", ["ets.0", "wps.0"])).rph == pb.Rph(auth=["ets.0", "wps.0"])
    assert to_message(Rph("1", "2", "ets.0")).rph == pb.Rph(auth=["ets.0"])
    rcd = Rcd("1", "2", "n", "3", "i", "{}", "j", {"/jcl": "sha256-x"}, "why", 7)
    assert to_message(rcd).rcd == pb.Rcd(
        nam="n", apn="3", icn="i", jcd="{}", jcl="j", rcdi={"/jcl": "sha256-x"}, crn="why"
    )


WRONG: Any = 12155550112


@pytest.mark.parametrize(
    "passport",
    [
        Base(WRONG, "2"),
        Base("1", WRONG),
        Base("1", [WRONG]),
        Base("1", {"2": "3"}),  # type: ignore[arg-type]
        Base("1", "2", "3"),  # type: ignore[arg-type]
        Shaken("1", "2", WRONG),
        Shaken("1", "2", None),  # type: ignore[arg-type]
        Shaken("1", "2", "A", WRONG),
        Div("1", "2", WRONG, 1),
        Rph("1", "2", WRONG),
        Rcd("1", "2", WRONG),
        {"orig": "1"},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_a_type_error(passport: Passport) -> None:
    with pytest.raises(TypeError):
        to_message(passport)


def test_a_signature_is_its_identity_header_and_stays_out_of_the_log() -> None:
    signed = Signed("eyJ.eyJ.sig;info=<https://cr.example.net/a.pem>;alg=ES256", "an-origid", 3)
    assert f"{signed}" == signed.identity
    assert "sig" not in re.sub("Signed", "", repr(signed))


# --- what a watch tells


def active(profile: str, x5u: str = "u", epoch: int = 1) -> ActiveCredential:
    return ActiveCredential(profile, "1234", "0" * 16, x5u, "0" * 64, 1, 2, epoch)


def test_events_become_values_and_unknown_ones_are_passed_over() -> None:
    message = pb.ActiveCredential(
        profile="acme",
        spc="1234",
        credential="0" * 16,
        x5u="u",
        spki_sha256="0" * 64,
        not_before=1,
        not_after=2,
    )
    assert change_of(pb.CredentialEvent(epoch=1, active=message)) == active("acme")
    assert change_of(pb.CredentialEvent(epoch=2, withdrawn="acme")) == Withdrawn("acme", 2)
    assert change_of(pb.CredentialEvent(epoch=3, synced=pb.Synced())) == Synced(3)
    assert change_of(pb.CredentialEvent(epoch=4)) is None
    assert Resync(Told()).changes(None) == []


NAMES = st.sampled_from(["acme", "other", "third"])
SNAPSHOT = st.dictionaries(NAMES, st.sampled_from(["u1", "u2"]))


@given(st.lists(SNAPSHOT, min_size=1, max_size=5))
def test_whoever_follows_the_changes_knows_the_last_snapshot(
    snapshots: list[dict[str, str]],
) -> None:
    """Each snapshot is one stream; between them the connection was lost."""
    told = Told()
    known: dict[str, str] = {}
    for epoch, snapshot in enumerate(snapshots):
        before, stream = dict(known), Resync(told)
        heard = []
        for profile, x5u in snapshot.items():
            heard += stream.changes(active(profile, x5u, epoch))
        heard += stream.changes(Synced(epoch))
        for change in heard:
            match change:
                case ActiveCredential():
                    assert known.get(change.profile) != change.x5u, "nothing is told twice"
                    known[change.profile] = change.x5u
                case Withdrawn():
                    assert change.profile in before
                    del known[change.profile]
        assert heard[-1] == Synced(epoch)
        assert known == snapshot


def test_a_profile_that_comes_back_is_told_again() -> None:
    stream = Resync(Told())
    assert stream.changes(active("acme")) == [active("acme")]
    assert stream.changes(Withdrawn("acme", 2)) == [Withdrawn("acme", 2)]
    assert stream.changes(Withdrawn("acme", 3)) == []
    assert stream.changes(active("acme")) == [active("acme")]
