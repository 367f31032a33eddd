"""An HSM in memory with the interface of `kmsd.hsm`, held to it by the same contract tests.

A `FakeToken` is the device: it can be opened several times (as by several processes), be
unplugged, and hold what others put there. Keys are software keys; nothing here is secret.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsd import settings
from kmsd.errors import Misconfigured, NotFound, Precondition, Unavailable
from kmsd.hsm import Info, Inventory
from kmsd.hsm.keys import REQUIRED, check_attributes, check_digest, own_id
from kmsd.model import BirthRecord

FIT = {f"CKA_{attribute.name}": value for attribute, value in REQUIRED.items()}


@dataclass(frozen=True)
class FakeKey:
    """One key pair; `private` or `public` is False when that half is not there."""

    key: ec.EllipticCurvePrivateKey
    attributes: dict[str, bool]
    private: bool = True
    public: bool = True

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        public = self.key.public_key()
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, digest: bytes) -> bytes:
        """r||s over a SHA-256 digest."""
        der = self.key.sign(digest, ec.ECDSA(utils.Prehashed(SHA256())))
        return b"".join(number.to_bytes(32, "big") for number in utils.decode_dss_signature(der))


@dataclass
class FakeToken:
    """The device. present: plugged in. generation grows each time it is unplugged."""

    label: str = "kmsd"
    pin: str = "fake-pin"
    present: bool = True
    generation: int = 0
    foreign: int = 0
    keys: dict[str, FakeKey] = field(default_factory=dict)

    def put(self, key_id: str, attributes: dict[str, bool]) -> bytes:
        """Puts a key there past the rules; returns its DER SubjectPublicKeyInfo."""
        self.keys[key_id] = FakeKey(ec.generate_private_key(ec.SECP256R1()), FIT | attributes)
        return self.keys[key_id].spki

    def remove_half(self, key_id: str, half: str) -> None:
        """Removes the "private" or the "public" half of a key."""
        key = self.keys[key_id]
        match half:
            case "private":
                self.keys[key_id] = replace(key, private=False)
            case "public":
                self.keys[key_id] = replace(key, public=False)

    def unplug(self) -> None:
        """Takes the token away: whoever had it open does not get it back."""
        self.present = False
        self.generation += 1

    def plug_in(self) -> None:
        """Brings the token back for those who open it anew."""
        self.present = True


class FakeHsm:
    """`kmsd.hsm.Hsm` on a FakeToken."""

    def __init__(self, token: FakeToken, threads: int = 1) -> None:
        """Logged in already; `open` checks label and PIN first."""
        self._token = token
        self._generation = token.generation
        self._open = True
        self.info = Info("kmsd fake 1.0", token.label, "0000000000000001")
        self.max_threads = threads

    @classmethod
    def open(cls, token: FakeToken, settings: settings.Hsm, pin: str) -> Self:
        """As `Hsm.open`, on the one token there is."""
        if not token.present or token.label != settings.token:
            present = token.label if token.present else ""
            raise Unavailable(
                "HSM_TOKEN_MISSING", f"There is no token {settings.token!r}.", present=present
            )
        if pin != token.pin:
            raise Misconfigured(
                "HSM_PIN_INCORRECT", "The PIN is wrong.", ckr="CKR_PIN_INCORRECT", token=token.label
            )
        return cls(token, settings.threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._open = False

    def probe(self) -> None:
        if not self._open:
            raise Unavailable("HSM_CLOSED", "It has been closed.", token=self.info.token)
        if self._token.generation != self._generation:
            raise Unavailable(
                "HSM_LOST",
                "The token does not answer.",
                ckr="CKR_GENERAL_ERROR",
                token=self.info.token,
            )

    def session(self) -> "FakeSession":
        self.probe()
        return FakeSession(self)

    def generate(self, key_id: str, label: str, now: int) -> BirthRecord:
        own_id(key_id)
        with self.device() as keys:
            key = keys.get(key_id)
            if key is None or not (key.private and key.public):
                self._token.put(key_id, {})
                key = keys[key_id]
            check_attributes(key_id, key.attributes)
            return BirthRecord(
                key_id=key_id,
                label=label,
                made_at=now,
                public_key=key.spki,
                attributes=key.attributes,
                module=self.info.module,
                token=self.info.token,
                serial=self.info.serial,
            )

    def public_key(self, key_id: str) -> bytes | None:
        own_id(key_id)
        with self.device() as keys:
            key = keys.get(key_id)
            return key.spki if key and key.private and key.public else None

    def sign(self, key_id: str, digest: bytes) -> bytes:
        check_digest(digest)
        key = self.private(key_id)
        check_attributes(key_id, key.attributes)
        return key.sign(digest)

    def destroy(self, key_id: str, public_key: bytes) -> None:
        own_id(key_id)
        with self.device() as keys:
            if key_id not in keys:
                raise NotFound("HSM_KEY_ABSENT", f"There is no key {key_id}.", key=key_id)
            if keys[key_id].spki != public_key:
                raise Precondition("HSM_KEY_MISMATCH", f"Another key is {key_id}.", key=key_id)
            del keys[key_id]

    def inventory(self) -> Inventory:
        with self.device() as keys:
            return Inventory(frozenset(keys), self._token.foreign)

    def private(self, key_id: str) -> FakeKey:
        """The key by that id, if its private half is there."""
        own_id(key_id)
        with self.device() as keys:
            key = keys.get(key_id)
            if key is None or not key.private:
                raise NotFound("HSM_KEY_ABSENT", f"There is no key {key_id}.", key=key_id)
            return key

    @contextmanager
    def device(self) -> Iterator[dict[str, FakeKey]]:
        """The token's keys, if it is still the token that was opened."""
        self.probe()
        yield self._token.keys


@dataclass(frozen=True)
class FakeHandle:
    """`kmsd.hsm.Handle`."""

    key_id: str
    spki_sha256: str


class FakeSession:
    """`kmsd.hsm.Session`."""

    def __init__(self, hsm: FakeHsm) -> None:
        self._hsm = hsm
        self._open = True

    def load(self, key_id: str, spki_sha256: str) -> FakeHandle:
        key = self._hsm.private(key_id)
        check_attributes(key_id, key.attributes)
        if sha256(key.spki).hexdigest() != spki_sha256:
            raise Precondition("HSM_KEY_MISMATCH", f"Another key is {key_id}.", key=key_id)
        return FakeHandle(key_id, spki_sha256)

    def sign(self, handle: FakeHandle, digest: bytes) -> bytes:
        check_digest(digest)
        if not self._open:
            raise Unavailable("HSM_CLOSED", "It has been closed.", token=self._hsm.info.token)
        try:
            return self._hsm.private(handle.key_id).sign(digest)
        except NotFound as error:
            raise Unavailable(
                "HSM_OBJECT_LOST",
                "An object cannot be reached.",
                ckr="CKR_OBJECT_HANDLE_INVALID",
                token=self._hsm.info.token,
            ) from error

    def close(self) -> None:
        self._open = False
