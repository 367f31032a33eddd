"""Checks of what is remembered: the store, and the keyring that must say the same. Blocking."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kmsd import keyring as keyrings
from kmsd.check.files import is_out_of_sight
from kmsd.check.finding import Finding, Level, error, failed, ok, warning
from kmsd.config import anew
from kmsd.errors import KmsdError
from kmsd.model import Active
from kmsd.settings import Configuration
from kmsd.store import Store

NOT_YET = frozenset({"STORE_MISSING", "STORE_SCHEMA_OLDER"})
"""What is as it should be before the keeper's next start."""


@dataclass(frozen=True)
class Keys:
    """CKA_IDs. known: in the store. made: known to have been made, with whose they are."""

    known: frozenset[str]
    made: dict[str, str]


def store(configuration: Configuration, now: int) -> Iterator[Finding]:
    """The store opens, has this schema, is undamaged; what is active is still valid."""
    if is_out_of_sight(configuration.store.password):
        yield warning("store", "Its password is a systemd credential; it was not opened.")
        return
    try:
        opened = _look(configuration)
    except KmsdError as refusal:
        yield failed("store", refusal, _level(refusal))
        return
    with opened as store:
        damage = store.damage()
        active = store.all_active()
        count = len(store.credentials())
        epoch = store.epoch()
    for line in damage:
        yield error("store", f"The database is damaged: {line}.", "Restore the last backup.")
    for credential in active:
        if isinstance(credential.state, Active) and credential.state.certificate.not_after < now:
            yield error(
                "store",
                f"The certificate that {credential.profile} signs with has expired.",
                f"kmsctl rotate {credential.profile}",
            )
    yield ok("store", f"{count} credentials, {len(active)} of them active, epoch {epoch}.")


def keyring(configuration: Configuration) -> Iterator[Finding]:
    """The keyring can be read and is what the store has active."""
    folder = Path(configuration.keyring)
    active: dict[str, tuple[str, str, str]] | None = None
    try:
        with _look(configuration) as store:
            active = {
                one.profile: (one.id, one.key_id, one.state.x5u)
                for one in store.all_active()
                if isinstance(one.state, Active)
            }
            epoch = store.epoch()
    except KmsdError as refusal:
        if refusal.reason not in NOT_YET:
            yield warning("keyring", "It cannot be compared with the store.")
    if not folder.exists() and not active:
        yield ok("keyring", "Nothing is active yet.")
        return
    snapshot = keyrings.read(folder)
    yield ok("keyring", f"Epoch {snapshot.epoch}, {len(snapshot.entries)} profiles can sign.")
    if active is None:
        return
    entries = {one.profile: (one.credential, one.key_id, one.x5u) for one in snapshot.entries}
    for profile in sorted(entries.keys() | active.keys()):
        if entries.get(profile) != active.get(profile):
            yield error(
                "keyring",
                f"For {profile} the keyring has {_named(entries.get(profile))}, "
                f"the store {_named(active.get(profile))}.",
                "Restart the keeper, which puts it right: systemctl restart kmsd-keeper",
            )
    if snapshot.epoch > epoch:
        yield warning(
            "keyring",
            f"Its epoch {snapshot.epoch} is ahead of the store's {epoch}.",
            "Was the store restored from a backup?",
        )


def keys(configuration: Configuration) -> Keys | None:
    """The keys that the HSM should have; None when the store cannot say."""
    try:
        with _look(configuration) as store:
            credentials, accounts = store.credentials(), store.accounts()
    except KmsdError:
        return None
    owned = [(one.key_id, f"credential {one.id}", one.state) for one in credentials]
    made = {key: whose for key, whose, state in owned if getattr(state, "birth", None)}
    made |= {
        one.key_id: f"the account of {one.profile} at {one.issuer}"
        for one in accounts
        if one.birth is not None
    }
    known = frozenset({key for key, _, _ in owned} | {one.key_id for one in accounts})
    return Keys(known, made)


def public_chains(configuration: Configuration) -> dict[str, str]:
    """x5u to chain of what is active and on our own STI-CR; empty when the store cannot say."""
    try:
        with _look(configuration) as store:
            active = [one.state for one in store.all_active()]
    except KmsdError:
        return {}
    ours = configuration.repository.public_url
    return {
        state.x5u: state.certificate.chain
        for state in active
        if isinstance(state, Active) and state.x5u.startswith(ours)
    }


def _look(configuration: Configuration) -> Store:
    store = configuration.store
    return Store.look(store.url, anew(store.password, "store.password"))


def _level(refusal: KmsdError) -> Level:
    return Level.WARNING if refusal.reason in NOT_YET else Level.ERROR


def _named(entry: tuple[str, str, str] | None) -> str:
    return f"credential {entry[0]}" if entry else "none"
