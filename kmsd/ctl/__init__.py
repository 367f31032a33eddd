"""kmsctl, the operator's command line: asks the keeper over kmsapi.v1.Admin and shows.

It decides nothing: what may be done, and what happens next, is the keeper's to say. Tables are
for people, `--output json` is a versioned contract for programs (`output`), exit codes are
documented (`failure`, kmsctl.1).
"""

import os
import sys
from collections.abc import Sequence

import typer

from kmsd.ctl import failure, invocation
from kmsd.ctl.app import application
from kmsd.errors import KmsdError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of the process) and returns the exit code."""
    given = invocation.hoisted(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    json = invocation.asks_for_json(given)
    try:
        ended = typer.main.get_command(application()).main(
            given, prog_name="kmsctl", standalone_mode=False
        )
        sys.stdout.flush()
    except KmsdError as error:
        return failure.report(error, json=json)
    except typer.TyperException as error:
        return failure.report(_usage(error), json=json)
    except (typer.Abort, KeyboardInterrupt):
        stopped = failure.Interrupted(
            "INTERRUPTED", "Stopped before anything was changed.", next_step="kmsctl status"
        )
        return failure.report(stopped, json=json)
    except BrokenPipeError:
        # `kmsctl credentials | head`: the reader has seen enough. The interpreter must not
        # complain either when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failure.ExitCode.OK
    return ended if isinstance(ended, int) else failure.ExitCode.OK


def _usage(error: typer.TyperException) -> failure.UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "kmsctl"
    message = error.format_message().rstrip()
    return failure.UsageError(
        "USAGE", message if message.endswith(".") else f"{message}.", next_step=f"{command} --help"
    )
