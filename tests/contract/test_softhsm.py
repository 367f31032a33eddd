"""What only a real module can show: loading it, logging in, threads, and its independence."""

import ctypes
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import utils
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from kmsd import errors, hsm, settings
from kmsd.hsm import cryptoki, login
from tests.contract.hsm_bench import ROOT, assert_refused
from tests.softhsm import make_token, pin_of

DIGEST = sha256(b"a PASSporT").digest()


def test_four_threads_with_two_sessions_each_sign_without_a_crash(softhsm: settings.Hsm) -> None:
    key_id = hsm.new_key_id()
    with opened(softhsm) as device:
        device.generate(key_id, "", 1)
    request = {"settings": softhsm, "do": "hammer", "key": key_id, "threads": 4, "signatures": 100}
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.other_process"],
        input=msgspec.json.encode(request),
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"400", b"")


def test_openssl_accepts_a_signature(softhsm: settings.Hsm, tmp_path: Path) -> None:
    key_id = hsm.new_key_id()
    with opened(softhsm) as device:
        public_key = device.generate(key_id, "", 1).public_key
        signature = device.sign(key_id, DIGEST)
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    (tmp_path / "signature").write_bytes(utils.encode_dss_signature(r, s))
    (tmp_path / "digest").write_bytes(DIGEST)
    (tmp_path / "key.pem").write_bytes(
        load_der_public_key(public_key).public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
    )
    verified = subprocess.run(
        shlex.split("openssl pkeyutl -verify -pubin -inkey key.pem -sigfile signature -in digest"),
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )
    assert "Verified Successfully" in verified.stdout


def test_a_wrong_pin_is_tried_once(softhsm: settings.Hsm, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class CountingToken:
        """The real token, counting logins."""

        def __init__(self, token: Any) -> None:
            self.flags, self.label, self.slot = token.flags, token.label, token.slot
            self._token = token

        def open(self, *, user_pin: str) -> Any:
            tried.append(user_pin)
            return self._token.open(user_pin=user_pin)

    monkeypatch.setattr(
        "kmsd.hsm.token.find_token", lambda *wanted: CountingToken(login.find_token(*wanted))
    )
    assert_refused(
        errors.Misconfigured, "HSM_PIN_INCORRECT", lambda: hsm.Hsm.open(softhsm, "12345678")
    )
    assert tried == ["12345678"]
    assert pkcs11.TokenFlag.USER_PIN_COUNT_LOW in flags_of(softhsm)


@pytest.mark.parametrize("pin", ["", "1", "x" * 1000, "\ud800 secret", "pin\0pin"])
def test_an_impossible_pin_is_refused_without_showing_it(softhsm: settings.Hsm, pin: str) -> None:
    error = assert_refused(
        errors.Misconfigured, "HSM_PIN_INCORRECT", lambda: hsm.Hsm.open(softhsm, pin)
    )
    assert error.__cause__ is None or not isinstance(error.__cause__, UnicodeError)
    assert "secret" not in repr(error)


def test_a_token_label_may_have_spaces(tmp_path: Path) -> None:
    label = 'SHAKEN "keys", rack 2'
    with opened(make_token(tmp_path / "with a space", label)) as device:
        assert device.info.token == label
        assert device.info.module.startswith("SoftHSM ")
        assert len(device.info.serial) == 16


def test_two_tokens_of_one_label_are_not_guessed_between(tmp_path: Path) -> None:
    made, other = make_token(tmp_path / "one"), make_token(tmp_path / "two")
    (folder,) = Path(other.pin).with_name("tokens").iterdir()
    folder.rename(Path(made.pin).with_name("tokens") / folder.name)
    assert_refused(errors.Misconfigured, "HSM_TOKEN_AMBIGUOUS", lambda: opened(made))


def test_the_module_is_opened_once_in_a_process(softhsm: settings.Hsm) -> None:
    with opened(softhsm) as device:
        assert_refused(errors.Misconfigured, "HSM_MODULE_IN_USE", lambda: opened(softhsm))
        device.probe()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("/nowhere/libpkcs11.so", "HSM_MODULE_MISSING"),
        ("/etc", "HSM_MODULE_MISSING"),
        ("/etc/passwd", "HSM_MODULE_NOT_LOADABLE"),
        ("no-such-library.so", "HSM_MODULE_NOT_LOADABLE"),
        ("libc.so.6", "HSM_MODULE_NOT_PKCS11"),
    ],
)
def test_what_is_no_pkcs11_module_is_refused(module: str, reason: str) -> None:
    wrong = settings.Hsm(module=module)
    assert_refused(errors.Misconfigured, reason, lambda: hsm.Hsm.open(wrong, "1234"))


def test_a_module_that_does_not_start_is_waited_for(softhsm: settings.Hsm) -> None:
    lost = msgspec.structs.replace(softhsm, environment={"SOFTHSM2_CONF": "/nowhere/conf"})
    error = assert_refused(errors.Unavailable, "HSM_MODULE_FAILED", lambda: opened(lost))
    assert error.metadata["ckr"] == "CKR_GENERAL_ERROR"
    opened(softhsm).close()


def test_a_module_that_cannot_lock_gets_one_thread(
    softhsm: settings.Hsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = msgspec.structs.replace(softhsm, threads=4)
    with opened(many) as device:
        assert device.max_threads == 4

    class CannotLock(cryptoki._Functions):
        """The real module, answering CKR_CANT_LOCK."""

        def __init__(self, library: Any) -> None:
            super().__init__(library)
            initialize: Any = self.initialize
            self.initialize: Any = lambda wanted: 0xA if wanted else initialize(None)

    monkeypatch.setattr(cryptoki, "_Functions", CannotLock)
    with opened(many) as device:
        assert device.max_threads == 1


def test_a_key_made_with_an_unsafe_template_is_destroyed_again(softhsm: settings.Hsm) -> None:
    key_id = hsm.new_key_id()
    with opened(softhsm, {"CKA_EXTRACTABLE": True}) as device:
        error = assert_refused(
            errors.Misconfigured, "HSM_KEY_ATTRIBUTES", lambda: device.generate(key_id, "", 1)
        )
        assert "CKA_EXTRACTABLE is true" in error.message
        assert device.inventory() == hsm.Inventory(frozenset(), 0)
    with opened(softhsm) as device:
        device.generate(key_id, "", 1)


def test_a_template_the_module_refuses_names_the_setting(softhsm: settings.Hsm) -> None:
    with opened(softhsm, {"CKA_MODULUS_BITS": 256}) as device:
        error = assert_refused(
            errors.Misconfigured,
            "HSM_TEMPLATE_REFUSED",
            lambda: device.generate(hsm.new_key_id(), "", 1),
        )
        assert error.metadata["token"] == "kmsd"
        # SoftHSM leaves an object without any attribute behind: nobody's, so it stays.
        assert device.inventory().ours == frozenset()


def test_an_attribute_can_be_left_out_of_the_template(softhsm: settings.Hsm) -> None:
    with opened(softhsm, {"CKA_EXTRACTABLE": "omit"}) as device:
        birth = device.generate(hsm.new_key_id(), "", 1)
    assert birth.attributes["CKA_EXTRACTABLE"] is False


@pytest.mark.parametrize(
    "template",
    [
        {"CKA_NO_SUCH_THING": True},
        {"EXTRACTABLE": True},
        {"CKA_EXTRACTABLE": "no"},
        {"CKA_EXTRACTABLE": 0},
        {"CKA_MODULUS_BITS": True},
        {"CKA_MODULUS_BITS": -1},
        {"CKA_SUBJECT": "text"},
        {"CKA_ID": "6b6d7364"},
        {"CKA_TOKEN": False},
        {"CKA_LABEL": "mine"},
    ],
    ids=str,
)
def test_a_template_that_means_nothing_is_refused_before_the_pin_is_used(
    softhsm: settings.Hsm, template: dict[str, bool | int | str]
) -> None:
    wrong = msgspec.structs.replace(softhsm, template=template)
    assert_refused(
        errors.Misconfigured, "HSM_TEMPLATE_INVALID", lambda: hsm.Hsm.open(wrong, "not the PIN")
    )


def test_two_private_keys_with_one_id_are_not_guessed_between(softhsm: settings.Hsm) -> None:
    key_id = hsm.new_key_id()
    with opened(softhsm) as device:
        public_key = device.generate(key_id, "", 1).public_key
        domain = device._guardian.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: hsm.keys.P256}, local=True
        )
        domain.generate_keypair(  # a session object, with the same id
            id=bytes.fromhex(key_id),
            capabilities=pkcs11.MechanismFlag.SIGN,
            mechanism=pkcs11.Mechanism.EC_KEY_PAIR_GEN,
        )
        session = device.session()
        for use in (
            lambda: device.sign(key_id, DIGEST),
            lambda: device.generate(key_id, "", 1),
            lambda: device.destroy(key_id, public_key),
            lambda: session.load(key_id, sha256(public_key).hexdigest()),
        ):
            assert_refused(errors.Misconfigured, "HSM_KEY_AMBIGUOUS", use)


def test_a_lost_login_is_never_taken_for_a_token_without_keys(softhsm: settings.Hsm) -> None:
    key_id = hsm.new_key_id()
    with opened(softhsm) as device:
        public_key = device.generate(key_id, "", 1).public_key
        session = device.session()
        handle = session.load(key_id, sha256(public_key).hexdigest())
        other_owner = ctypes.CDLL(softhsm.module)  # logs out the whole process
        assert other_owner.C_Logout(ctypes.c_ulong(device._guardian.handle)) == 0
        uses: tuple[Callable[[], object], ...] = (
            device.probe,
            device.inventory,
            lambda: device.public_key(key_id),
            lambda: device.destroy(key_id, public_key),
            lambda: session.sign(handle, DIGEST),
            lambda: device.session().load(key_id, sha256(public_key).hexdigest()),
        )
        for use in uses:
            with pytest.raises(errors.Unavailable):
                use()
    with opened(softhsm) as device:
        assert device.public_key(key_id) == public_key


def test_a_token_without_the_mechanisms_is_refused(softhsm: settings.Hsm) -> None:
    with Path(softhsm.environment["SOFTHSM2_CONF"]).open("a") as conf:
        conf.write("slots.mechanisms = CKM_SHA256,CKM_RSA_PKCS\n")
    error = assert_refused(errors.Misconfigured, "HSM_MECHANISM_REFUSED", lambda: opened(softhsm))
    assert error.metadata["mechanisms"] == "CKM_ECDSA, CKM_EC_KEY_PAIR_GEN"


def opened(where: settings.Hsm, template: dict[str, bool | int | str] | None = None) -> hsm.Hsm:
    return hsm.Hsm.open(msgspec.structs.replace(where, template=template or {}), pin_of(where))


def flags_of(where: settings.Hsm) -> pkcs11.TokenFlag:
    os.environ.update(where.environment)
    module = cryptoki.load(where.module)
    try:
        return login.find_token(module, where.token).flags
    finally:
        module.finalize()
