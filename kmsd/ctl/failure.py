"""How kmsctl ends when it does not succeed: exit codes, and the error as people and programs
read it.

People, on standard error: a sentence, `reason: X`, further facts, and the next command to
type. Programs, with --output json: also an `error` document on standard output.
"""

from collections.abc import Sequence
from enum import IntEnum

import typer

from kmsd.ctl.output import ErrorDocument, encoded
from kmsd.ctl.page import duration, plain
from kmsd.errors import KmsdError, Unavailable


class ExitCode(IntEnum):
    """Part of the interface, as documented in kmsctl(1)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DEGRADED = 3
    NEEDS_PERSON = 4
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done, and all is well",
    ExitCode.ERROR: "it failed; verify: it does not verify",
    ExitCode.USAGE: "the command line is wrong, or a confirmation is missing",
    ExitCode.DEGRADED: "status: not all is well, and kmsd is at work on it",
    ExitCode.NEEDS_PERSON: "status: an alarm names a step to take; enroll, rotate, ...: it failed",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}
"""Every exit code in one line."""


class UsageError(KmsdError):
    """The command line is wrong."""

    code = "INVALID_ARGUMENT"


class EnrollmentFailed(KmsdError):
    """An enrollment ended before its credential was active; a person must take the next step."""

    code = "FAILED_PRECONDITION"


class Interrupted(KmsdError):
    """The person at the terminal pressed Ctrl-C."""

    code = "CANCELLED"


def exit_code(error: KmsdError) -> ExitCode:
    match error:
        case UsageError():
            return ExitCode.USAGE
        case EnrollmentFailed():
            return ExitCode.NEEDS_PERSON
        case Interrupted():
            return ExitCode.INTERRUPTED
        case _:
            return ExitCode.ERROR


def report(error: KmsdError, *, json: bool) -> ExitCode:
    """Tells the error on standard error, and on standard output for programs."""
    code = exit_code(error)
    typer.echo("\n".join(lines(error)), err=True)
    if json:
        document = ErrorDocument(
            reason=error.reason,
            message=error.message,
            next_step=next_step(error),
            metadata=_facts(error),
            exit_code=code,
        )
        typer.echo(encoded(document))
    return code


def lines(error: KmsdError) -> Sequence[str]:
    """The error for people; the last line is what to type next."""
    told = [plain(error.message), f"reason: {plain(error.reason)}"]
    facts = dict(_facts(error))
    problem = facts.pop("problem", "")
    told += [f"{plain(name)}: {plain(value)}" for name, value in facts.items()]
    if problem:
        told += ["the peer said:", *(f"  {line}" for line in plain(problem).splitlines())]
    if isinstance(error, Unavailable) and error.retry_after > 0:
        told.append(f"try again: in {duration(max(1, round(error.retry_after)))}")
    return [*told, f"next: {plain(next_step(error))}"]


def next_step(error: KmsdError) -> str:
    """What to do; when the error does not know, looking around is never wrong."""
    return error.next_step or "kmsctl status"


def _facts(error: KmsdError) -> dict[str, str]:
    problem = getattr(error, "problem", "")
    return dict(error.metadata) | ({"problem": problem} if problem else {})
