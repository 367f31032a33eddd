"""The process's one login on the token, and the keeper's slow work under it.

PKCS#11 logs a whole process in and out, not a session: closing any session that was opened
with a PIN logs everybody out. So one object, `Hsm`, opens the guardian session with the PIN,
keeps it, and closes it last; all other sessions are opened without a PIN.
A token that went away stays away for this object even when it is back: close it and open
another. Absence is concluded only from a token that has just proved to work.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, PKCS11Error, SignMixin, TokenFlag

from kmsd.errors import Misconfigured, Precondition
from kmsd.hsm import cryptoki, keys
from kmsd.hsm.failures import lost, translated
from kmsd.hsm.keys import Info, Inventory
from kmsd.hsm.login import check_mechanisms, find_token, log_in
from kmsd.hsm.objects import Pair, absent, count, find_pair
from kmsd.hsm.session import Session
from kmsd.model import BirthRecord
from kmsd.settings import Hsm as Settings


class Hsm:
    """One logged-in token. Thread-safe; blocking. At most one is open in a process.

    info: module, token label and serial. max_threads: how many threads may use sessions at
    the same time, settings.Hsm.threads or 1 when the module cannot lock; with 1 the calls of
    this object count as well.
    """

    def __init__(
        self,
        module: cryptoki.Module,
        token: pkcs11.Token,
        guardian: Any,
        template: dict[Attribute, Any],
        threads: int,
    ) -> None:
        """For `open` alone."""
        self._module = module
        self._slot = token.slot
        self._token = token
        self._guardian = guardian
        self._template = template
        self._lock = threading.RLock()
        self._open = True
        self._sessions: WeakSet[Session] = WeakSet()
        self.info = _info(module, token)
        self.max_threads = threads if module.threaded else 1

    @classmethod
    def open(cls, settings: Settings, pin: str) -> Self:
        """Loads the module, finds the token by its label, and logs in.

        settings.environment is set for the whole process first, as modules read it when they
        load. The PIN is tried once and not kept.
        Raises Unavailable("HSM_TOKEN_MISSING", "HSM_MODULE_FAILED") when the same call may
        succeed later; Misconfigured("HSM_MODULE_...", "HSM_TOKEN_AMBIGUOUS", "HSM_PIN_...",
        "HSM_MECHANISM_REFUSED", "HSM_TEMPLATE_INVALID") when a person must act first.
        """
        template = keys.private_template(settings.template)
        os.environ.update(settings.environment)
        module = cryptoki.load(settings.module)
        try:
            with translated(settings.token):
                token = find_token(module, settings.token)
                check_mechanisms(token)
                guardian = log_in(token, pin)
            hsm = cls(module, token, guardian, template, settings.threads)
            hsm.probe()
            return hsm
        except BaseException:
            module.finalize()
            raise

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
        """Logs out and finalizes the module; sessions still open are closed. Idempotent.

        No thread may be signing any more: modules crash when they are finalized under a call.
        """
        with self._lock:
            if self._open:
                self._open = False
                for session in self._sessions:
                    session.close()
                self._module.finalize()

    def probe(self) -> None:
        """Checks that the token answers and the login holds. Cheap. Raises Unavailable."""
        with self._reading():
            token = self._slot.get_token()
            if token.serial != self._token.serial:
                raise lost("HSM_TOKEN_CHANGED", "another token is in its slot", self.info.token)
            if not self._module.logged_in(self._guardian.handle):
                raise lost("HSM_LOGIN_LOST", "the login is lost", self.info.token)
            if token.flags & TokenFlag.RNG:  # the one harmless call that has to reach the device
                self._guardian.generate_random(64)

    def session(self) -> Session:
        """A new session for one signing thread; whoever asked closes it. Raises as `probe`."""
        with self._reading():
            opened: Any = self._token.open()
            signing = self._module.signing(opened.handle)
            session = Session(opened, signing, self.info.token, self.probe)
            self._sessions.add(session)
            return session

    def generate(self, key_id: str, label: str, now: int) -> BirthRecord:
        """Makes the P-256 key pair `key_id`, or finds it made; reads back and checks it.

        For a key id that has no birth record yet: repeating it after a crash converges, and a
        half that a crash left is cleared away. label: for people. now: seconds UTC.
        Raises Misconfigured("HSM_KEY_ATTRIBUTES") when what came back is not what was asked
        for, or does not sign ("HSM_KEY_SELF_TEST"); a key made by this call is destroyed then.
        """
        identifier = keys.own_id(key_id)
        with self._writing() as session:
            pair = find_pair(session, identifier)
            made = not (pair.private and pair.public_key(key_id))
            if made:
                self.probe()  # what looks like half a pair may be half a token
                pair.destroy()
                pair = self._make(session, identifier, label)
            try:
                return self._birth_record(pair, key_id, label, now)
            except Misconfigured:
                if made:
                    pair.destroy()
                raise

    def public_key(self, key_id: str) -> bytes | None:
        """DER SubjectPublicKeyInfo; None when a working token has no such key pair."""
        with self._reading() as session:
            pair = find_pair(session, keys.own_id(key_id))
            public_key = pair.public_key(key_id) if pair.private else None
            if public_key is None:
                self.probe()
            return public_key

    def sign(self, key_id: str, digest: bytes) -> bytes:
        """r||s, 64 bytes, over a SHA-256 digest; searches for the key each time: for the keeper.

        Raises NotFound("HSM_KEY_ABSENT") when a working token has no such key, Unavailable.
        """
        keys.check_digest(digest)
        with self._reading() as session:
            pair = find_pair(session, keys.own_id(key_id))
            if not pair.private:
                self.probe()
                raise absent(key_id, self.info.token)
            key = pair.private_key(key_id)
            keys.check_attributes(key_id, keys.read_attributes(key))
            return _sign(key, digest)

    def destroy(self, key_id: str, public_key: bytes) -> None:
        """Destroys both halves of the key whose DER SubjectPublicKeyInfo is `public_key`.

        Raises NotFound("HSM_KEY_ABSENT") when a working token has nothing by that id: after a
        crash that is success. Precondition("HSM_KEY_MISMATCH") when it is another key,
        Precondition("HSM_KEY_FOREIGN") when the id is not ours; nothing is touched then.
        """
        identifier = keys.own_id(key_id)
        with self._writing() as session:
            pair = find_pair(session, identifier)
            if not pair.private:  # a lost login hides private halves and shows public ones
                self.probe()
            if pair == Pair():
                raise absent(key_id, self.info.token)
            if not _is(pair, key_id, public_key):
                raise Precondition(
                    "HSM_KEY_MISMATCH",
                    f"The key {key_id} on the HSM {self.info.token!r} is not the one to be"
                    " destroyed: its public key is another.",
                    next_step="Compare the token's serial number with the birth record's.",
                    key=key_id,
                    token=self.info.token,
                )
            pair.destroy()

    def inventory(self) -> Inventory:
        """Which of our keys are on the token, and how many objects are not ours."""
        with self._reading() as session:
            found = count(session)
            self.probe()  # a token that left during the listing shows too little
            return found

    @contextmanager
    def _reading(self) -> Iterator[pkcs11.Session]:
        """Lends the guardian session: slow work is one call at a time."""
        with self._lock, translated(self.info.token):
            if not self._open:
                raise lost("HSM_CLOSED", "it has been closed", self.info.token)
            yield self._guardian

    @contextmanager
    def _writing(self) -> Iterator[pkcs11.Session]:
        """Lends a session that may write, for as long as it is needed."""
        with self._reading():
            session = self._token.open(rw=True)
            try:
                yield session
            finally:
                with suppress(PKCS11Error):
                    session.close()

    def _make(self, session: pkcs11.Session, identifier: bytes, label: str) -> Pair:
        # Named by mechanism and capability: python-pkcs11's defaults for EC allow derivation.
        domain = session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: keys.P256}, local=True
        )
        public, private = domain.generate_keypair(
            id=identifier,
            label=label,
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            mechanism=keys.EC_KEY_PAIR_GEN,
            private_template=self._template,
        )
        return Pair((private,), (public,))

    def _birth_record(self, pair: Pair, key_id: str, label: str, now: int) -> BirthRecord:
        key = pair.private_key(key_id)
        attributes = keys.read_attributes(key)
        keys.check_attributes(key_id, attributes)
        public_key = pair.public_key(key_id)
        digest = os.urandom(keys.DIGEST_BYTES)
        if public_key is None or not keys.verifies(public_key, digest, _sign(key, digest)):
            raise Misconfigured(
                "HSM_KEY_SELF_TEST",
                f"The HSM {self.info.token!r} made a key that does not sign for its public key.",
                next_step="Do not use this module; show the vendor this message.",
            )
        return BirthRecord(
            key_id=key_id,
            label=label,
            made_at=now,
            public_key=public_key,
            attributes=attributes,
            module=self.info.module,
            token=self.info.token,
            serial=self.info.serial,
        )


def _info(module: cryptoki.Module, token: pkcs11.Token) -> Info:
    library = module.library
    version = ".".join(map(str, library.library_version))
    name = f"{library.manufacturer_id} {library.library_description} {version}"
    return Info(name, token.label, token.serial.decode("ascii", "replace"))


def _sign(key: Any, digest: bytes) -> bytes:
    signature: bytes = key.sign(digest, mechanism=keys.ECDSA)
    return keys.raw_signature(signature)


def _is(pair: Pair, key_id: str, public_key: bytes) -> bool:
    """Whether what is there belongs to `public_key`: each half that is there has to prove it.

    A private key that cannot sign is taken at its public half's word.
    """
    if pair.public and pair.public_key(key_id) != public_key:
        return False
    if not pair.private:
        return True
    key = pair.private_key(key_id)
    if not isinstance(key, SignMixin):
        return bool(pair.public)
    digest = os.urandom(keys.DIGEST_BYTES)
    return keys.verifies(public_key, digest, _sign(key, digest))
