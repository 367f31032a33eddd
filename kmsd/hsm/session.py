"""One signing thread's own PKCS#11 session and the key handles in it: the fast path.

A session serialises the threads that share it, so each thread has its own. It is read-only
and relies on the process's one login, which `token` owns; closing it logs nobody out.
Nothing recovers here: an Unavailable means that the process is to be replaced.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256

import pkcs11
from pkcs11 import ObjectHandleInvalid, PKCS11Error

from kmsd.errors import Precondition
from kmsd.hsm import keys
from kmsd.hsm.cryptoki import Signing
from kmsd.hsm.failures import lost, translated, translated_code
from kmsd.hsm.objects import Pair, absent, every_pair, find_pair


@dataclass(frozen=True, slots=True)
class Handle:
    """A key as one session knows it; of no use to any other session.

    spki_sha256: lower-case hex SHA-256 of its DER SubjectPublicKeyInfo.
    """

    key_id: str
    spki_sha256: str
    _number: ctypes.c_ulong = field(repr=False)


class Session:
    """Lent out by `Hsm.session`. Not thread-safe: one thread uses it."""

    def __init__(
        self, session: pkcs11.Session, signing: Signing, token: str, probe: Callable[[], None]
    ) -> None:
        self._session = session
        self._signing = signing
        self._token = token
        self._probe = probe
        self._index: dict[bytes, Pair] | None = None
        self._open = True

    def sign(self, handle: Handle, digest: bytes) -> bytes:
        """r||s, 64 bytes, over a SHA-256 digest of 32 bytes.

        Raises Unavailable when the HSM is lost, Misconfigured, Exhausted.
        """
        keys.check_digest(digest)
        if not self._open:  # the module gives its handle numbers to others by now
            raise lost("HSM_CLOSED", "the session has been closed", self._token)
        signature = self._signing(handle._number, digest)
        if isinstance(signature, int):
            raise translated_code(signature, self._token)
        return keys.raw_signature(signature)

    def load(self, key_id: str, spki_sha256: str) -> Handle:
        """Finds a key and checks that it is the one meant and fit to sign.

        The first call lists the token, so that the next thousand cost no search; a key made
        later, by whatever process, is searched for alone. spki_sha256: lower-case hex.
        Raises NotFound("HSM_KEY_ABSENT") when a working token has no such key,
        Precondition("HSM_KEY_MISMATCH") when its public key is another,
        Misconfigured("HSM_KEY_ATTRIBUTES") when it may leave the HSM or do more than sign,
        Unavailable when the token does not answer.
        """
        identifier = keys.own_id(key_id)
        if not self._open:
            raise lost("HSM_CLOSED", "the session has been closed", self._token)
        with translated(self._token):
            if self._index is None:
                self._index = every_pair(self._session)
            listed = self._index.get(identifier, Pair())
            if listed.private:
                with suppress(ObjectHandleInvalid):  # no longer that object: look again
                    return self._handle(key_id, listed, spki_sha256)
            pair = find_pair(self._session, identifier)
            self._index[identifier] = pair
            if pair.private:
                return self._handle(key_id, pair, spki_sha256)
        self._probe()
        raise absent(key_id, self._token)

    def close(self) -> None:
        """Closes the session; idempotent. The login, other sessions and their handles stay."""
        if self._open:
            self._open = False
            self._index = None
            with suppress(PKCS11Error):  # a session that is lost needs no closing
                self._session.close()

    def _handle(self, key_id: str, pair: Pair, spki_sha256: str) -> Handle:
        key = pair.private_key(key_id)
        keys.check_attributes(key_id, keys.read_attributes(key))
        public_key = pair.public_key(key_id)
        found = sha256(public_key).hexdigest() if public_key else ""
        if found != spki_sha256:
            raise Precondition(
                "HSM_KEY_MISMATCH",
                f"The key {key_id} on the HSM {self._token!r} is not the one its certificate"
                " is for; nothing is signed with it.",
                next_step="See whether the token was exchanged or restored from another.",
                key=key_id,
                token=self._token,
                spki_sha256=found,
            )
        return Handle(key_id, found, ctypes.c_ulong(key.handle))
