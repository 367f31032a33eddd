"""What every HSM does, asserted on the fake and on a real PKCS#11 token."""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kmsd import errors, hsm
from tests.contract.fake_hsm import FakeSession
from tests.contract.hsm_bench import (
    DIGEST,
    NOW,
    FakeOnBench,
    SoftHsmOnBench,
    Token,
    assert_refused,
    assert_verifies,
)


@pytest.fixture(params=["fake", "softhsm"])
def token(request: pytest.FixtureRequest, tmp_path: Path) -> Token:
    return FakeOnBench() if request.param == "fake" else SoftHsmOnBench(tmp_path / "hsm")


def test_a_new_key_comes_with_its_proof_of_origin(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        birth = device.generate(key_id, "SHAKEN 1234", NOW)
        assert birth.key_id == key_id
        assert birth.label == "SHAKEN 1234"
        assert birth.made_at == NOW
        assert (birth.module, birth.token, birth.serial) == (
            device.info.module,
            device.info.token,
            device.info.serial,
        )
        assert birth.attributes["CKA_SENSITIVE"]
        assert birth.attributes["CKA_NEVER_EXTRACTABLE"]
        assert not birth.attributes["CKA_EXTRACTABLE"]
        assert not birth.attributes["CKA_DERIVE"]
        assert device.public_key(key_id) == birth.public_key


def test_generating_again_finds_the_same_key(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        first = device.generate(key_id, "", NOW)
        assert device.generate(key_id, "", NOW) == first
        assert device.inventory() == hsm.Inventory(frozenset({key_id}), 0)


def test_signatures_are_64_raw_bytes_that_verify(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        public_key = device.generate(key_id, "", NOW).public_key
        session = device.session()
        handle = session.load(key_id, sha256(public_key).hexdigest())
        assert_verifies(public_key, device.sign(key_id, DIGEST))
        assert_verifies(public_key, sign(session, handle, DIGEST))


@pytest.mark.parametrize("digest", [b"", b"d" * 31, b"d" * 33, b"d" * 10_000])
def test_only_a_sha256_digest_is_signed(token: Token, digest: bytes) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        spki = sha256(device.generate(key_id, "", NOW).public_key).hexdigest()
        session = device.session()
        handle = session.load(key_id, spki)
        assert_refused(errors.Invalid, "HSM_DATA_REFUSED", lambda: device.sign(key_id, digest))
        assert_refused(errors.Invalid, "HSM_DATA_REFUSED", lambda: sign(session, handle, digest))


@pytest.mark.parametrize("key_id", ["", "kmsd", "6B6D7364" + "0" * 24, "6b6d7364" + "0" * 26])
def test_a_malformed_key_id_is_refused(token: Token, key_id: str) -> None:
    assert_id_refused(token, key_id, errors.Invalid, "HSM_KEY_ID_INVALID")


def test_the_id_of_another_programs_key_is_refused(token: Token) -> None:
    assert_id_refused(token, "00" * 16, errors.Precondition, "HSM_KEY_FOREIGN")


def test_a_key_that_is_not_there_is_absent(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        assert device.public_key(key_id) is None
        session = device.session()
        for use in (
            lambda: device.sign(key_id, DIGEST),
            lambda: device.destroy(key_id, b"any"),
            lambda: session.load(key_id, "0" * 64),
        ):
            assert_refused(errors.NotFound, "HSM_KEY_ABSENT", use)


def test_a_destroyed_key_is_gone_and_destroying_it_again_says_so(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        public_key = device.generate(key_id, "", NOW).public_key
        device.destroy(key_id, public_key)
        assert device.inventory() == hsm.Inventory(frozenset(), 0)
        assert_refused(
            errors.NotFound, "HSM_KEY_ABSENT", lambda: device.destroy(key_id, public_key)
        )


def test_a_key_is_destroyed_only_for_its_own_public_key(token: Token) -> None:
    wanted, other = hsm.new_key_id(), hsm.new_key_id()
    with token.open() as device:
        public_key = device.generate(wanted, "", NOW).public_key
        others = device.generate(other, "", NOW).public_key
        assert_refused(
            errors.Precondition, "HSM_KEY_MISMATCH", lambda: device.destroy(wanted, others)
        )
        assert_verifies(public_key, device.sign(wanted, DIGEST))


def test_other_programs_objects_are_counted_and_left_alone(token: Token) -> None:
    key_id = hsm.new_key_id()
    token.elsewhere("put_foreign")
    with token.open() as device:
        public_key = device.generate(key_id, "", NOW).public_key
        assert device.inventory() == hsm.Inventory(frozenset({key_id}), 3)
        device.destroy(key_id, public_key)
        assert device.inventory() == hsm.Inventory(frozenset(), 3)


def test_a_key_with_another_public_key_is_not_loaded(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        device.generate(key_id, "", NOW)
        session = device.session()
        assert_refused(
            errors.Precondition, "HSM_KEY_MISMATCH", lambda: session.load(key_id, "0" * 64)
        )


def test_a_session_sees_a_key_that_another_process_makes_later(token: Token) -> None:
    early, late = hsm.new_key_id(), hsm.new_key_id()
    with token.open() as device:
        session = device.session()
        session.load(early, sha256(device.generate(early, "", NOW).public_key).hexdigest())
        public_key = bytes.fromhex(token.elsewhere("generate", late))
        handle = session.load(late, sha256(public_key).hexdigest())
        assert_verifies(public_key, sign(session, handle, DIGEST))


def test_a_key_destroyed_by_another_process_signs_no_more(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        spki = sha256(device.generate(key_id, "", NOW).public_key).hexdigest()
        session = device.session()
        handle = session.load(key_id, spki)
        token.elsewhere("destroy", key_id)
        assert_refused(errors.Unavailable, "HSM_OBJECT_LOST", lambda: sign(session, handle, DIGEST))
        assert_refused(errors.NotFound, "HSM_KEY_ABSENT", lambda: session.load(key_id, spki))


def test_closing_a_session_leaves_the_login_and_other_sessions(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        public_key = device.generate(key_id, "", NOW).public_key
        first, second = device.session(), device.session()
        handle = second.load(key_id, sha256(public_key).hexdigest())
        first.close()
        first.close()
        assert_verifies(public_key, sign(second, handle, DIGEST))
        device.probe()


@pytest.mark.parametrize(
    "template",
    [{"EXTRACTABLE": True}, {"SENSITIVE": False}, {"DERIVE": True}, {"DECRYPT": True}],
    ids=str,
)
def test_a_key_that_may_leave_or_do_more_than_sign_is_not_used(
    token: Token, template: dict[str, bool]
) -> None:
    key_id = hsm.new_key_id()
    public_key = bytes.fromhex(token.elsewhere("put", key_id, template=template))
    with token.open() as device:
        session = device.session()
        for use in (
            lambda: session.load(key_id, sha256(public_key).hexdigest()),
            lambda: device.sign(key_id, DIGEST),
            lambda: device.generate(key_id, "", NOW),
        ):
            error = assert_refused(errors.Misconfigured, "HSM_KEY_ATTRIBUTES", use)
            assert f"CKA_{next(iter(template))}" in error.metadata["attributes"]
        assert device.inventory().ours == {key_id}
        device.destroy(key_id, public_key)
        assert device.inventory().ours == frozenset()


@pytest.mark.parametrize("half", ["private", "public"])
def test_a_half_that_a_crash_left_is_replaced_by_a_whole_key(token: Token, half: str) -> None:
    key_id = hsm.new_key_id()
    token.elsewhere("generate", key_id)
    token.elsewhere("remove_half", key_id, half=half)
    with token.open() as device:
        assert device.public_key(key_id) is None
        birth = device.generate(key_id, "", NOW)
        assert_verifies(birth.public_key, device.sign(key_id, DIGEST))
        assert device.generate(key_id, "", NOW) == birth


@pytest.mark.parametrize("half", ["private", "public"])
def test_a_half_that_a_crash_left_can_be_destroyed(token: Token, half: str) -> None:
    key_id = hsm.new_key_id()
    public_key = bytes.fromhex(token.elsewhere("generate", key_id))
    token.elsewhere("remove_half", key_id, half=half)
    with token.open() as device:
        device.destroy(key_id, public_key)
        assert device.inventory() == hsm.Inventory(frozenset(), 0)


def test_a_token_that_went_away_is_never_taken_for_one_without_keys(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        public_key = device.generate(key_id, "", NOW).public_key
        spki = sha256(public_key).hexdigest()
        session = device.session()
        handle = session.load(key_id, spki)
        token.unplug()
        uses: tuple[Callable[[], object], ...] = (
            device.probe,
            device.inventory,
            lambda: device.public_key(key_id),
            lambda: device.sign(key_id, DIGEST),
            lambda: device.destroy(key_id, public_key),
            lambda: device.generate(key_id, "", NOW),
            lambda: sign(session, handle, DIGEST),
            lambda: session.load(key_id, spki),
        )
        for use in uses:
            with pytest.raises(errors.Unavailable):
                use()
        token.plug_in()
        for use in uses:  # until it is opened anew
            with pytest.raises(errors.Unavailable):
                use()
    with token.open() as device:
        assert_verifies(public_key, device.sign(key_id, DIGEST))


def test_a_closed_hsm_answers_nothing_and_can_be_closed_again(token: Token) -> None:
    device = token.open()
    device.close()
    device.close()
    assert_refused(errors.Unavailable, "HSM_CLOSED", device.probe)
    assert_refused(errors.Unavailable, "HSM_CLOSED", lambda: device.sign("6b6d7364" * 4, DIGEST))


def test_a_session_never_outlives_its_hsm(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        spki = sha256(device.generate(key_id, "", NOW).public_key).hexdigest()
        session = device.session()
        handle = session.load(key_id, spki)
    with token.open() as again:  # where its handle numbers mean something else
        again.session()
        assert_refused(errors.Unavailable, "HSM_CLOSED", lambda: sign(session, handle, DIGEST))
        assert_refused(errors.Unavailable, "HSM_CLOSED", lambda: session.load(key_id, spki))


def test_a_closed_session_signs_no_more(token: Token) -> None:
    key_id = hsm.new_key_id()
    with token.open() as device:
        spki = sha256(device.generate(key_id, "", NOW).public_key).hexdigest()
        session = device.session()
        handle = session.load(key_id, spki)
        session.close()
        assert_refused(errors.Unavailable, "HSM_CLOSED", lambda: sign(session, handle, DIGEST))


def test_a_missing_token_is_waited_for_and_the_labels_there_are_named(token: Token) -> None:
    error = assert_refused(
        errors.Unavailable, "HSM_TOKEN_MISSING", lambda: token.open(label="other")
    )
    assert error.metadata["present"] == "kmsd"
    token.open().close()


def test_a_wrong_pin_is_for_the_operator(token: Token) -> None:
    error = assert_refused(
        errors.Misconfigured, "HSM_PIN_INCORRECT", lambda: token.open(pin="not the PIN")
    )
    assert error.metadata == {"ckr": "CKR_PIN_INCORRECT", "token": "kmsd"}
    assert "not the PIN" not in f"{error!r} {error}"
    token.open().close()


def assert_id_refused(token: Token, key_id: str, kind: type[errors.KmsdError], reason: str) -> None:
    with token.open() as device:
        session = device.session()
        for use in (
            lambda: device.generate(key_id, "", NOW),
            lambda: device.sign(key_id, DIGEST),
            lambda: device.public_key(key_id),
            lambda: device.destroy(key_id, os.urandom(91)),
            lambda: session.load(key_id, "0" * 64),
        ):
            assert_refused(kind, reason, use)
        assert device.inventory() == hsm.Inventory(frozenset(), 0)


def sign(session: hsm.Session | FakeSession, handle: Any, digest: bytes) -> bytes:
    """`session.sign` with a handle of that same session."""
    return session.sign(handle, digest)
