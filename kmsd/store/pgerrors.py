"""What PostgreSQL's errors mean, by their SQLSTATE (PostgreSQL manual, appendix A)."""

import re

import sqlalchemy as sa

from kmsd.errors import Invalid, KmsdError, Misconfigured, Precondition, Unavailable


def translated(error: Exception, name: str) -> KmsdError:
    """What a database error means for a person. Never holds the statement's values.

    name: of the database, to begin a sentence with.
    """
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    said = _first_line(cause)
    state: str = getattr(cause, "sqlstate", None) or _state_of(said)
    if isinstance(error, sa.exc.DataError):
        return Invalid("STORE_VALUE_INVALID", f"{name} cannot hold such a value.")
    match state[:2], state:
        case _, "23505" if "one_active_credential_per_profile" in str(cause):
            return Precondition(
                "PROFILE_ALREADY_ACTIVE",
                "A profile would have two active credentials.",
                next_step="Retire the one that is active in the same change.",
            )
        case "23", _:
            return Precondition("STORE_CONFLICT", "What is stored is there already.")
        case _, "53100":
            return Unavailable(
                "STORE_DISK_FULL",
                f"{name} has no room left on its disk; nothing was changed.",
                next_step="Make room on the database's host.",
            )
        case _, "25006":
            return Unavailable(
                "STORE_READ_ONLY",
                f"{name} takes no changes: a replica, or set to read only.",
                next_step="Name the primary in store.url, or let it take changes again.",
            )
        case ("40", _) | (_, "55P03" | "57014"):
            return Unavailable("STORE_BUSY", f"{name} was kept locked by another.")
        case (_, "58030") | (_, "53200"):
            return Unavailable(
                "STORE_IO_ERROR",
                f"{name} could not read or write ({state}).",
                next_step="Look at the database's host: its log, its disks, its memory.",
            )
        case _, "XX001" | "XX002":
            return Misconfigured(
                "STORE_CORRUPTED",
                f"{name} is damaged ({state}).",
                next_step="Restore the last backup; the HSM keeps the keys.",
            )
        case ("28", _) | ("3D", _):
            return Misconfigured(
                "STORE_LOGIN_REFUSED",
                f"{name} does not let us in: {said}",
                next_step="See store.url, store.password, and the database's pg_hba.conf.",
            )
        case _, "42501":
            return Misconfigured(
                "STORE_CANNOT_OPEN",
                f"{name} does not let us do that: {said}",
                next_step="Let our user own the schema: ALTER SCHEMA ... OWNER TO ...",
            )
        case ("42", _) | ("3F", _):
            return Misconfigured(
                "STORE_DAMAGED",
                f"{name} does not have the tables it should have.",
                next_step="Restore the last backup.",
            )
    if _is_outage(error, state):
        return Unavailable(
            "STORE_UNREACHABLE",
            f"{name} does not answer: {said}",
            next_step="It is tried again; signers go on without it.",
        )
    return Unavailable("STORE_FAILED", f"{name} failed ({state}).")


def _is_outage(error: Exception, state: str) -> bool:
    if not state:  # libpq speaks: no connection, or no more
        return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return state[:2] in ("08", "25", "53", "57")


def _state_of(said: str) -> str:
    """The SQLSTATE of a refused connection, of which libpq tells the words alone.

    PostgreSQL may speak another language; then it is taken for an outage, and tried again.
    """
    if re.search(r"authentication failed|pg_hba\.conf|no password supplied|role .* not", said):
        return "28000"
    return "3D000" if re.search(r"database .* does not exist", said) else ""


def _first_line(error: BaseException | None) -> str:
    text = " ".join(str(error).split("\n\t")[0].split())
    return text[:300].removeprefix("connection failed: ").rstrip(".") + "."
