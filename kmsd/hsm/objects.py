"""Looking for keys on a token by CKA_ID.

An empty answer proves nothing: a token that is gone, or a login that was lost, finds nothing
too. Whoever concludes something from absence probes the token afterwards.
Return codes leave here as python-pkcs11 raises them; callers translate.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pkcs11
from pkcs11 import Attribute, ObjectClass

from kmsd.errors import Misconfigured, NotFound
from kmsd.hsm import keys


@dataclass(frozen=True, slots=True)
class Pair:
    """What a token has under one CKA_ID: normally one private and one public key."""

    private: tuple[Any, ...] = ()
    public: tuple[Any, ...] = ()

    def private_key(self, key_id: str) -> Any:
        """The private key. Raises Misconfigured("HSM_KEY_AMBIGUOUS") when there are several."""
        if len(self.private) != 1:
            raise _ambiguous(key_id, f"{len(self.private)} private keys")
        return self.private[0]

    def public_key(self, key_id: str) -> bytes | None:
        """DER SubjectPublicKeyInfo, from whichever half tells it; None when neither does.

        Raises Misconfigured("HSM_KEY_AMBIGUOUS") when there are several.
        """
        for halves in (self.public, self.private):
            told = {keys.public_key_of(half) for half in halves} - {None}
            if len(told) > 1:
                raise _ambiguous(key_id, f"{len(told)} public keys")
            if told:
                return told.pop()
        return None

    def destroy(self) -> None:
        """Destroys what there is, the private half first: what a crash leaves signs nothing."""
        for half in (*self.private, *self.public):
            half.destroy()


def find_pair(session: pkcs11.Session, identifier: bytes) -> Pair:
    """The halves with that CKA_ID."""
    private, public = (
        tuple(session.get_objects({Attribute.CLASS: kind, Attribute.ID: identifier}))
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
    )
    return Pair(private, public)


def every_pair(session: pkcs11.Session) -> dict[bytes, Pair]:
    """Every pair of ours on the token, by CKA_ID: two listings, however many keys there are."""
    pairs: dict[bytes, Pair] = {}
    for key, identifier in _identified(_listed(session, ObjectClass.PRIVATE_KEY)):
        if keys.is_ours(identifier):
            pair = pairs.get(identifier, Pair())
            pairs[identifier] = Pair((*pair.private, key), pair.public)
    for key, identifier in _identified(_listed(session, ObjectClass.PUBLIC_KEY)):
        if keys.is_ours(identifier):
            pair = pairs.get(identifier, Pair())
            pairs[identifier] = Pair(pair.private, (*pair.public, key))
    return pairs


def count(session: pkcs11.Session) -> keys.Inventory:
    """What is on the token: our keys by id, and how many objects are not ours."""
    ours: set[str] = set()
    foreign = 0
    for kind in _COUNTED:
        for _, identifier in _identified(_listed(session, kind)):
            if kind in _KEY_HALVES and keys.is_ours(identifier):
                ours.add(identifier.hex())
            else:
                foreign += 1
    return keys.Inventory(frozenset(ours), foreign)


def absent(key_id: str, token: str) -> NotFound:
    """The error for a key that a token which has just proved to work does not have."""
    return NotFound(
        "HSM_KEY_ABSENT",
        f"The HSM {token!r} works and has no key {key_id}.",
        next_step="See whether this is the token, or the partition, that the key was made on.",
        key=key_id,
        token=token,
    )


def _ambiguous(key_id: str, what: str) -> Misconfigured:
    return Misconfigured(
        "HSM_KEY_AMBIGUOUS",
        f"The HSM has {what} with the id {key_id}; none of them is used.",
        next_step="See which program made the others, and remove them with the vendor's program.",
        key=key_id,
    )


def _listed(session: pkcs11.Session, kind: ObjectClass) -> list[Any]:
    """Every object of a class. Class by class, because python-pkcs11 fails on unknown ones."""
    for _ in range(_LISTINGS - 1):
        with suppress(pkcs11.ObjectHandleInvalid):  # another process destroyed one meanwhile
            return list(session.get_objects({Attribute.CLASS: kind}))
    return list(session.get_objects({Attribute.CLASS: kind}))


def _identified(objects: Iterable[Any]) -> Iterator[tuple[Any, bytes]]:
    """The objects with their CKA_ID, b"" for one without; not those destroyed meanwhile."""
    for thing in objects:
        try:
            identifier = thing[Attribute.ID]
        except pkcs11.ObjectHandleInvalid:
            continue
        except (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive, IndexError):
            identifier = b""
        yield thing, identifier


_LISTINGS = 4  # attempts at a list that another process keeps changing
_KEY_HALVES = frozenset({ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY})
_COUNTED = (*_KEY_HALVES, ObjectClass.SECRET_KEY, ObjectClass.CERTIFICATE, ObjectClass.DATA)
