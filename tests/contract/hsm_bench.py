"""Tokens on the bench: what a test does to a token from outside, on the fake and on SoftHSM."""

import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kmsd import errors, hsm, settings
from tests.contract.fake_hsm import FakeHsm, FakeToken
from tests.softhsm import make_token, pin_of

ROOT = Path(__file__).parent.parent.parent
DIGEST = sha256(b"a PASSporT").digest()
NOW = 1_800_000_000

AnyHsm = hsm.Hsm | FakeHsm


class Token(Protocol):
    """A token on the bench: opened by us, changed by others, unplugged."""

    def open(self, *, label: str = "kmsd", pin: str = "") -> AnyHsm: ...
    def elsewhere(self, do: str, key_id: str = "", **more: Any) -> Any: ...
    def unplug(self) -> None: ...
    def plug_in(self) -> None: ...


class FakeOnBench:
    """The fake; what others do to it is done directly."""

    def __init__(self) -> None:
        self.token = FakeToken()
        self.unplug = self.token.unplug
        self.plug_in = self.token.plug_in

    def open(self, *, label: str = "kmsd", pin: str = "") -> FakeHsm:
        return FakeHsm.open(self.token, settings.Hsm(token=label), pin or self.token.pin)

    def elsewhere(self, do: str, key_id: str = "", **more: Any) -> Any:
        match do:
            case "generate":
                return FakeHsm(self.token).generate(key_id, "", NOW).public_key.hex()
            case "destroy":
                del self.token.keys[key_id]
            case "remove_half":
                self.token.remove_half(key_id, more["half"])
            case "put":
                named = {f"CKA_{name}": value for name, value in more["template"].items()}
                return self.token.put(key_id, named).hex()
            case "put_foreign":
                self.token.foreign += 3


class SoftHsmOnBench:
    """A SoftHSM token; what others do to it, another process does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = make_token(folder)

    def open(self, *, label: str = "kmsd", pin: str = "") -> hsm.Hsm:
        asked = msgspec.structs.replace(self.settings, token=label)
        return hsm.Hsm.open(asked, pin or pin_of(self.settings))

    def elsewhere(self, do: str, key_id: str = "", **more: Any) -> Any:
        request = {"settings": self.settings, "do": do, "key": key_id} | more
        done = subprocess.run(
            [sys.executable, "-m", "tests.contract.other_process"],
            input=msgspec.json.encode(request),
            stdout=subprocess.PIPE,
            check=True,
            cwd=ROOT,
        )
        return msgspec.json.decode(done.stdout)

    def unplug(self) -> None:
        (self.folder / "tokens").rename(self.folder / "unplugged")

    def plug_in(self) -> None:
        (self.folder / "unplugged").rename(self.folder / "tokens")


def assert_verifies(public_key: bytes, signature: bytes) -> None:
    """With cryptography, independently of the code under test."""
    assert len(signature) == 64
    key = load_der_public_key(public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    key.verify(utils.encode_dss_signature(r, s), DIGEST, ec.ECDSA(utils.Prehashed(SHA256())))


def assert_refused(
    kind: type[errors.KmsdError], reason: str, use: Callable[[], object]
) -> errors.KmsdError:
    with pytest.raises(kind) as caught:
        use()
    assert caught.value.reason == reason
    return caught.value
