"""Values to rows and back."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec
import sqlalchemy as sa

from kmsd.enrollment import Wait, next_action
from kmsd.errors import Invalid, Misconfigured, NotFound, Precondition
from kmsd.model import (
    Active,
    Credential,
    Destroyed,
    Doomed,
    Issued,
    New,
    Published,
    Rehearsed,
    Retired,
    RevocationList,
    State,
    TrustList,
    Value,
)
from kmsd.store import tables

V = TypeVar("V", bound=Value)


def document(value: Value) -> str:
    """The value as JSON text."""
    return msgspec.json.encode(value).decode()


def values(connection: sa.Connection, kind: type[V], query: sa.Select[str]) -> tuple[V, ...]:
    """The values whose documents the query selects. Raises Misconfigured STORE_DAMAGED."""
    decoder = msgspec.json.Decoder(kind)
    try:
        return tuple(decoder.decode(text) for text in connection.execute(query).scalars())
    except msgspec.DecodeError as error:
        raise Misconfigured(
            "STORE_DAMAGED",
            f"The store holds a {kind.__name__} that cannot be read: {error}.",
            next_step="Restore the last backup; the HSM keeps the keys.",
        ) from error


def columns(credential: Credential) -> dict[str, str | int | None]:
    """A credential as a row of `tables.credentials`."""
    return {
        "id": credential.id,
        "profile": credential.profile,
        "key_id": credential.key_id,
        "state": str(type(credential.state).__struct_config__.tag),
        "created": credential.created,
        "not_after": not_after(credential.state),
        "due": due(credential),
        "version": credential.version,
        "document": document(credential),
    }


def not_after(state: State) -> int | None:
    """The end of the certificate's validity, seconds UTC; None when there is none."""
    match state:
        case Issued() | Published() | Active() | Retired() | Rehearsed():
            return state.certificate.not_after
        case Doomed():
            return not_after(state.was)
        case Destroyed() if state.certificate is not None:
            return state.certificate.not_after
    return None


def due(credential: Credential) -> int | None:
    """When the keeper must look at it again, as far as its own state tells; None: never.

    An active one at once: its moment is its profile's plan, which somebody has to make.
    """
    if isinstance(credential.state, Active):
        return 0
    tried = credential.trouble.at if credential.trouble else 0
    action = next_action(credential, tried)
    return 0 if not isinstance(action, Wait) else action.until or None


def changed(connection: sa.Connection, credentials: Iterable[Credential]) -> None:
    """What follows from a change: the plan of the profile is due, what was said of a credential
    that is not active any more is forgotten, and a spare key that became one's own is spare no
    more."""
    row = tables.credentials.c
    for credential in credentials:
        connection.execute(
            sa.update(tables.credentials)
            .where(row.profile == credential.profile, row.state == "active")
            .values(due=0)
        )
        match credential.state:
            case New():
                taken = tables.spares.c.key_id == credential.key_id
                connection.execute(sa.delete(tables.spares).where(taken))
            case Retired() | Destroyed():
                old = tables.advice.c.credential == credential.id
                connection.execute(sa.delete(tables.advice).where(old))


def update(connection: sa.Connection, credential: Credential) -> None:
    """Write the credential over its previous version. Raises Precondition STORE_CONFLICT."""
    row = tables.credentials.c
    changed = connection.execute(
        sa.update(tables.credentials)
        .where(row.id == credential.id, row.version == credential.version - 1)
        # Which key it is and whose it is never change: a mix-up must not pass for a change.
        .where(row.key_id == credential.key_id, row.profile == credential.profile)
        .values(columns(credential))
    ).rowcount
    if changed == 1:
        return
    if connection.execute(sa.select(row.id).where(row.id == credential.id)).first() is None:
        raise unknown(credential.id)
    raise Precondition(
        "STORE_CONFLICT",
        f"Credential {credential.id} was changed by somebody else meanwhile.",
        next_step="Read it again and decide anew.",
        credential=credential.id,
    )


def put(
    connection: sa.Connection, table: sa.Table, key: dict[str, str], rest: dict[str, str | int]
) -> None:
    """Replace the row with this key, or insert it."""
    same = [table.c[name] == value for name, value in key.items()]
    if connection.execute(sa.update(table).where(*same).values(rest)).rowcount == 0:
        connection.execute(sa.insert(table).values(key | rest))


def trusted(connection: sa.Connection, kind: type[V], authority: str) -> V | None:
    """The trust material of this kind last accepted from the authority."""
    row = tables.trust.c
    query = sa.select(row.document).where(row.authority == authority, row.kind == kind.__name__)
    found = values(connection, kind, query)
    return found[0] if found else None


def trust(
    connection: sa.Connection,
    value: TrustList | RevocationList,
    number: int,
    *,
    restart: bool = False,
) -> None:
    """Keep the material unless later is there. Raises Precondition TRUST_ROLLED_BACK.

    restart: keep it in any case. number: its place in the sequence. Raises Invalid
    TRUST_NUMBER_INVALID beyond the 20 octets of a CRL number (RFC 5280 section 5.2.3), which is
    why the column is a text.
    """
    kind = type(value).__name__
    if not 0 <= number < 1 << 160:
        raise Invalid("TRUST_NUMBER_INVALID", f"The number of this {kind} is out of range.")
    row = tables.trust.c
    key = {"authority": value.authority, "kind": kind}
    last = connection.execute(
        sa.select(row.number)
        .where(row.authority == value.authority, row.kind == kind)
        .with_for_update()
    ).scalar()
    if last is not None and number < int(last) and not restart:
        raise Precondition(
            "TRUST_ROLLED_BACK",
            f"The {kind} of {value.authority} has number {number}, after {last} was accepted.",
            next_step="The later one stays in use; ask the STI-PA if this repeats.",
            authority=value.authority,
        )
    put(connection, tables.trust, key, {"number": str(number), "document": document(value)})


def unknown(id: str) -> NotFound:
    """The error for a credential that is not there."""
    return NotFound(
        "CREDENTIAL_UNKNOWN",
        f"There is no credential {id}.",
        next_step="List them: kmsctl credentials.",
        credential=id,
    )
