"""Everything the outside can do to an enrollment: refusals, lies, faults of the wire, full disks.

Each is a reason for programs, a sentence for people and an exit code; and whatever happens, the
profile goes on signing with what it had, nothing is half active, and no key is left behind.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kmsd_client import SigningError

from kmsd.lab import Lab, running_lab
from tests.contract.tokens import read_identity
from tests.system.disks import filled, needs_mount, small_disk
from tests.system.key_room import KeyRoom, Table
from tests.system.programs import until

PATIENCE = 2.0
"""Seconds for one request to STI-PA or STI-CA."""
NEW_ORDER = "/ca/new-order"
GOOD_FOR_NOTHING: dict[str, tuple[Table, str, str]] = {
    # The STI-PA.
    "an SPC that is suspended": ({"token": "refused"}, "STI_PA_REFUSED", "suspended"),
    "a refusal dressed as success": ({"token": "soft_refused"}, "STI_PA_REFUSED", "suspended"),
    "no SPC token at all": ({"token": "garbage"}, "SPC_TOKEN_REJECTED", ""),
    "an SPC token with a bad signature": ({"token": "signature"}, "SPC_TOKEN_REJECTED", ""),
    "an SPC token of another STI-PA": ({"token": "foreign"}, "SPC_TOKEN_REJECTED", ""),
    "an SPC token for another SPC": ({"token": "tkvalue"}, "SPC_TOKEN_REJECTED", ""),
    "an SPC token for another key": ({"token": "fingerprint"}, "SPC_TOKEN_REJECTED", ""),
    "an SPC token that has expired": ({"token": "expired"}, "SPC_TOKEN_REJECTED", ""),
    "a captive portal before the STI-PA": (
        {"pa": "html", "fault_path": "/account/"},
        "STI_PA_ANSWER_INVALID",
        "sign in to the network",
    ),
    # The STI-CA.
    "a challenge that fails": (
        {"order": "challenge_refused"},
        "ACME_ORDER_INVALID",
        "The STI-PA does not vouch for this SPC.",
    ),
    "a CSR that is refused": (
        {"order": "bad_csr"},
        "ACME_BAD_CSR",
        "The subject's O is not in our records.",
    ),
    "an order that dies while it is processed": (
        {"order": "invalid"},
        "ACME_ORDER_INVALID",
        "The certificate could not be made.",
    ),
    "a private key with the chain": ({"chain": "private_key"}, "ACME_ANSWER_MALFORMED", ""),
    "an empty chain": ({"chain": "empty"}, "ACME_ANSWER_MALFORMED", ""),
}
"""What the lab is switched to, the reason that comes of it, and the peer's own words."""
ISSUED_IN_VAIN: dict[str, str] = {
    "foreign_ca": "",
    "other_key": "key",
    "wrong_spc": "SPC 1234",
    "two_spcs": "",
    "expired": "was valid until",
    "not_yet_valid": "",
    "no_tnauthlist": "TNAuthList",
    "ca_true": "",
    "no_crldp": "",
    "leaf_last": "",
}
"""A chain that the STI-CA issues and the acceptance gate refuses, and a word that says why."""
HEALS: dict[str, tuple[Table, str]] = {
    "an STI-PA that is down": (
        {"pa": "unavailable", "fault_path": "/account/"},
        "STI_PA_UNAVAILABLE",
    ),
    "an STI-PA that stalls": ({"pa": "stall", "fault_path": "/account/"}, "STI_PA_TIMEOUT"),
    "an STI-PA that hangs up": (
        {"pa": "reset", "fault_path": "/account/"},
        "STI_PA_CONNECTION_RESET",
    ),
    "an STI-CA that is down": ({"ca": "unavailable"}, "ACME_SERVER_INTERNAL"),
    "an STI-CA that stalls": ({"ca": "stall", "fault_path": NEW_ORDER}, "ACME_TIMEOUT"),
    "an STI-CA that hangs up": ({"ca": "reset", "fault_path": NEW_ORDER}, "ACME_CONNECTION_LOST"),
    "a reply that is lost after the order was made": (
        {"ca": "reply_lost", "fault_path": NEW_ORDER},
        "ACME_CONNECTION_LOST",
    ),
    "a reply that is lost after the CSR was taken": (
        {"ca": "reply_lost", "fault_path": "/finalize"},
        "ACME_CONNECTION_LOST",
    ),
    "a captive portal before the STI-CA": (
        {"ca": "html", "fault_path": NEW_ORDER},
        "ACME_ANSWER_MALFORMED",
    ),
    "a redirect of the STI-CA": ({"ca": "redirect", "fault_path": NEW_ORDER}, "ACME_REDIRECT"),
    "an endless answer of the STI-CA": (
        {"ca": "oversized", "fault_path": NEW_ORDER},
        "ACME_ANSWER_MALFORMED",
    ),
    "a rate limit": ({"order": "rate_limited"}, "ACME_RATE_LIMITED"),
    "a storm of rejected nonces": ({"bad_nonce_share": 1.0}, "ACME_NONCE_BUDGET"),
    "an STI-CR that does not have the chain": ({"cr": "missing"}, "X5U_NOT_SERVED"),
    "an STI-CR that serves other bytes": ({"cr": "corrupt"}, "X5U_DIFFERENT"),
    "an STI-CR that redirects": ({"cr": "redirect"}, "X5U_REDIRECTED"),
    "an STI-CR behind a captive portal": ({"cr": "html"}, "X5U_DIFFERENT"),
    "an STI-CR that hangs up": ({"cr": "reset"}, "X5U_UNREACHABLE"),
}
"""What the lab is switched to, and the reason that is told until it is over."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def shared_lab(folder: Path) -> Iterator[Lab]:
    with running_lab(folder / "lab", spcs=["1234"], calm=True, stall_seconds=PATIENCE + 1) as lab:
        yield lab


@pytest.fixture(scope="module")
def shared_room(folder: Path, shared_lab: Lab) -> Iterator[KeyRoom]:
    """Keys that are not needed any more go at once, so that what is left over can be seen."""
    soon = {"policy": {"hold_key_days": 0.0, "restore_days": 0.0}}
    room = KeyRoom(
        folder / "room",
        shared_lab,
        profiles={"acme": soon},
        issuers={"lab-ca": {"timeout": PATIENCE, "poll_limit": 1.0}},
        authorities={"lab": {"timeout": PATIENCE}},
    )
    with room.running():
        room.enrolled()
        yield room


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    yield shared_lab
    shared_lab.reset()


@pytest.fixture
def room(shared_room: KeyRoom, lab: Lab) -> Iterator[KeyRoom]:
    """A profile that signs; and afterwards its key and its account's are all that is there."""
    yield shared_room
    lab.reset()
    _nothing_is_left_over(shared_room)


@pytest.mark.parametrize("what", GOOD_FOR_NOTHING)
def test_an_enrollment_ends_with_a_reason_after(what: str, room: KeyRoom, lab: Lab) -> None:
    switches, reason, words = GOOD_FOR_NOTHING[what]
    active = room.profile()["active"]
    lab.set(**switches)
    failed = room.kmsctl("rotate", "acme")
    assert (failed.code, failed.last["reason"]) == (4, reason)
    _is_a_sentence_with_advice(failed.last)
    assert words in failed.last["metadata"].get("problem", "")
    for line in words.splitlines():
        assert line in failed.errors
    _goes_on_signing_with(active, room)
    told = room.credential(failed.last["metadata"]["credential"])["credential"]
    assert told["state"] in ("failed", "destroyed")


@pytest.mark.parametrize("fault", ISSUED_IN_VAIN)
def test_a_certificate_that_breaks_a_rule_is_kept_for_inspection_and_never_used(
    fault: str, room: KeyRoom, lab: Lab
) -> None:
    active, public = room.profile()["active"], _published(lab)
    lab.set(chain=fault)
    failed = room.kmsctl("rotate", "acme")
    assert (failed.code, failed.last["reason"]) == (4, "CHAIN_NOT_ACCEPTED")
    _is_a_sentence_with_advice(failed.last)
    assert ISSUED_IN_VAIN[fault] in failed.last["message"]
    artefact = Path(failed.last["metadata"]["artefact"])
    assert artefact.read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert artefact.stat().st_mode & 0o077 == 0
    _goes_on_signing_with(active, room)
    assert _published(lab) == public


@pytest.mark.parametrize("what", HEALS)
def test_an_enrollment_waits_and_goes_on_by_itself_after(
    what: str, room: KeyRoom, lab: Lab
) -> None:
    switches, reason = HEALS[what]
    active, certificates = room.profile()["active"], lab.counts()["certificates"]
    lab.set(**switches)
    room.begun()
    until(f"{reason} is told", lambda: room.trouble().get("reason") == reason)
    trouble = room.trouble()
    assert trouble["message"].endswith(".")
    assert trouble["retry_at"]
    alarms = {one["reason"] for one in room.status()["alarms"]}
    # The STI-CA may still be left alone for what the case before this one did to it.
    assert alarms - {"ISSUER_IN_BACK_OFF"} == {reason}
    _goes_on_signing_with(active, room)
    lab.reset()
    coming = room.profile()["coming"]
    went_on = room.kmsctl("rotate", "acme")  # as a person does who has repaired it
    assert (went_on.code, went_on.last["credential"]["id"]) == (0, coming["id"])
    assert lab.counts()["certificates"] == certificates + 1
    _goes_on_signing_with(went_on.last["credential"], room)


def test_nobody_has_to_ask_again_when_the_sti_pa_is_back(room: KeyRoom, lab: Lab) -> None:
    lab.set(pa="unavailable", fault_path="/account/")
    room.begun()
    until("it waits", lambda: room.trouble().get("reason") == "STI_PA_UNAVAILABLE")
    coming = room.profile()["coming"]
    lab.reset()
    until("it is active", lambda: room.profile()["active"]["id"] == coming["id"])


def test_a_rate_limit_is_kept_to_and_shown_in_the_sti_cas_own_words(
    room: KeyRoom, lab: Lab
) -> None:
    lab.set(order="rate_limited", retry_after=40)
    room.begun()
    until("it waits", lambda: room.trouble().get("reason") == "ACME_RATE_LIMITED")
    asked = _requests(lab, NEW_ORDER)
    coming = room.profile()["coming"]
    assert "Too many orders for this account." in coming["trouble"]["problem"]
    lab.reset()
    room.kmsctl("status")
    assert _requests(lab, NEW_ORDER) == asked
    assert room.rotated()["id"] == coming["id"]


def test_an_enrollment_that_leads_nowhere_is_given_up_by_destroying_it(
    room: KeyRoom, lab: Lab
) -> None:
    """An STI-CA that never comes to a verdict would hold the profile up until the order ends."""
    active = room.profile()["active"]
    lab.set(order="never_ready")
    room.begun()
    until("it waits", lambda: room.trouble().get("reason") == "ACME_POLL_LIMIT")
    lab.reset()
    coming = room.profile()["coming"]
    given_up = room.kmsctl("destroy", coming["id"], "--yes")
    assert (given_up.code, given_up.last["credential"]["state"]) == (0, "doomed")
    _goes_on_signing_with(active, room)
    assert room.rotated()["id"] != coming["id"]


def test_a_certificate_that_is_revoked_on_its_way_is_never_signed_with(
    room: KeyRoom, lab: Lab
) -> None:
    active = room.profile()["active"]
    lab.set(cr="missing")
    room.begun()
    until("it waits", lambda: room.trouble().get("reason") == "X5U_NOT_SERVED")
    coming = room.profile()["coming"]
    assert room.kmsctl("revoke", coming["id"], "--reason", "superseded", "--yes").code == 0
    lab.reset()
    until("it has ended", lambda: room.state_of(coming["id"]) not in ("issued", "published"))
    assert room.state_of(coming["id"]) in ("failed", "destroyed")
    _goes_on_signing_with(active, room)
    assert room.rotated()["id"] != coming["id"]


@needs_mount
def test_a_full_disk_under_the_repository_publishes_nothing_and_heals(
    room: KeyRoom, lab: Lab
) -> None:
    active = room.profile()["active"]
    chains = Path(lab.facts.cr_dir)
    with small_disk(chains), filled(chains):
        room.begun()
        until("it is told", lambda: room.trouble().get("reason") == "REPOSITORY_DISK_FULL")
        assert room.trouble()["next_step"]
        _goes_on_signing_with(active, room)
    assert room.kmsctl("rotate", "acme").code == 0


def test_a_list_of_sti_cas_that_is_older_or_foreign_does_not_replace_the_last_good_one(
    folder: Path,
) -> None:
    """Nor does an empty one. Each keeper starts with a list that is due to be fetched."""
    with running_lab(folder / "trust", spcs=["1234"], calm=True, list_seconds=250) as lab:
        room = KeyRoom(folder / "trusting", lab)
        lab.set(ca_list="foreign")
        with room.signer():
            with room.keeper():
                room.begun(verb="enroll")
                until("no list", lambda: room.trouble().get("reason") == "TRUST_LIST_MISSING")
                assert lab.counts()["certificates"] <= 1
                lab.reset()
                room.enrolled()
                good = room.status()["trust"][0]
            for fault in ("lower_sequence", "empty"):
                lab.set(ca_list=fault)
                with room.keeper():
                    until("the list is refused", lambda: room.status()["trust"][0]["trouble"])
                    status = room.kmsctl("status")
                    assert status.code == 3
                    alarms = [one["reason"] for one in status.last["alarms"]]
                    assert alarms == ["TRUST_REFRESH_FAILED"]
                    trust = status.last["trust"][0]
                    assert (trust["sequence"], trust["roots"]) == (good["sequence"], 1)
                    room.rotated()  # by the last good list
                    assert room.kmsctl("verify", room.sign()).code == 0


def test_a_wrong_pin_is_tried_once_and_the_right_one_heals(folder: Path, shared_lab: Lab) -> None:
    room = KeyRoom(folder / "pin", shared_lab)
    pin = Path(room.token.pin)
    right = pin.read_text()
    pin.write_text("123123123\n")
    with room.keeper():
        for _ in range(3):
            room.begun(verb="enroll")
            status = room.status()
            assert not status["hsm"]["usable"]
            assert status["hsm"]["trouble"]
        until("it is told", lambda: "HSM_PIN" in room.trouble().get("reason", ""))
        assert room.log().count("reason=HSM_PIN_INCORRECT") == 1
        assert "123123123" not in room.log()
        code = room.kmsctl("status").code
        assert code == 4
        pin.write_text(right)
        room.enrolled()
        assert room.status()["hsm"]["usable"]
    assert len(room.inventory().ours) == 2


def test_a_keeper_starts_without_its_hsm_and_goes_on_when_it_comes(
    folder: Path, shared_lab: Lab
) -> None:
    room = KeyRoom(folder / "tokenless", shared_lab)
    token = folder / "tokenless" / "hsm" / "tokens"
    away = token.with_name("away")
    token.rename(away)
    token.mkdir()
    with room.signer(), room.keeper():
        room.begun(verb="enroll")
        status = room.kmsctl("status")
        assert status.code == 4
        assert not status.last["hsm"]["usable"]
        assert "HSM_NOT_USABLE" in {one["reason"] for one in status.last["alarms"]}
        until("it is told", lambda: room.trouble().get("reason") == "HSM_TOKEN_MISSING")
        with pytest.raises(SigningError) as refused:
            room.sign()
        assert refused.value.reason == "HSM_TOKEN_MISSING"
        token.rmdir()
        away.rename(token)
        room.enrolled()
        room.until_serving()
        room.sign()
        assert room.status()["condition"] == "ok"


def test_a_login_that_the_sti_pa_refuses_is_not_repeated(folder: Path) -> None:
    """Accounts lock, too."""
    password = folder / "wrong-password"
    password.write_text("not this one")
    password.chmod(0o600)
    with running_lab(folder / "login", spcs=["1234"], calm=True) as lab:
        room = KeyRoom(folder / "stranger", lab, authorities={"lab": {"password": str(password)}})
        with room.keeper():
            for _ in range(2):
                failed = room.kmsctl("enroll", "acme")
                assert (failed.code, failed.last["reason"]) == (4, "STI_PA_LOGIN_REFUSED")
                _is_a_sentence_with_advice(failed.last)
                assert "wrong password" in failed.last["metadata"]["problem"]
            assert _requests(lab, "/auth/login") == 1
            assert "not this one" not in room.log() + failed.errors


@needs_mount
def test_a_full_disk_under_the_store_changes_nothing_and_heals(folder: Path) -> None:
    state = folder / "small"
    with (
        running_lab(folder / "lab-of-small", spcs=["1234"], calm=True) as lab,
        small_disk(state),
    ):
        room = KeyRoom(folder / "small-room", lab, state=state)
        with room.running():
            active = room.enrolled()
            with filled(state):
                full = room.kmsctl("rotate", "acme")
                assert (full.code, full.last["reason"]) == (1, "STORE_DISK_FULL")
                _is_a_sentence_with_advice(full.last)
                _goes_on_signing_with(active, room)
                assert room.kmsctl("status").code == 0
            # And in the middle: what could not be stored is done again.
            lab.set(ca="slow", fault_path=NEW_ORDER, fault_times=1, stall_seconds=0.7)
            room.begun()
            until("it places an order", lambda: room.profile()["coming"]["state"] == "keyed")
            with filled(state):
                until("it is told", lambda: "not_stored" in room.log())
                _goes_on_signing_with(active, room)
            assert room.rotated()["id"] != active["id"]
            assert lab.counts()["certificates"] == 2
            assert len(room.inventory().ours) == 3


def _is_a_sentence_with_advice(error: Table) -> None:
    assert error["kind"] == "error"
    assert error["message"][0].isupper()
    assert error["message"].endswith(".")
    assert error["next_step"]


def _goes_on_signing_with(active: Table, room: KeyRoom) -> None:
    assert room.profile()["active"]["id"] == active["id"]
    assert read_identity(room.sign()).x5u == active["x5u"]


def _nothing_is_left_over(room: KeyRoom) -> None:
    """One credential that signs, its key, and the account's key; nothing foreign."""

    def listed() -> list[str]:
        return [one["state"] for one in room.credentials()]

    until("what failed and what retired is destroyed", lambda: listed() == ["active"])
    found = room.inventory()
    assert room.profile()["active"]["key_id"] in found.ours
    assert (len(found.ours), found.foreign) == (2, 0)


def _published(lab: Lab) -> set[str]:
    return set(os.listdir(lab.facts.cr_dir))


def _requests(lab: Lab, path: str) -> int:
    return sum(path in request["path"] for request in lab.requests())
