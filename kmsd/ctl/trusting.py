"""The commands about trust material: `trust forget`."""

from typing import Annotated

import typer
from kmsapi.v1 import admin_pb2 as pb

from kmsd.ctl import answers, completion, connection, details, invocation
from kmsd.ctl.changing import confirmed
from kmsd.ctl.failure import ExitCode

PATIENCE = 60.0
"""Seconds: the STI-PA is asked while we wait."""


def forget(
    context: typer.Context,
    authority: Annotated[
        str,
        typer.Argument(
            metavar="AUTHORITY", help="Name in kmsd.toml.", autocompletion=completion.authorities
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask (for programs).")] = False,
) -> int:
    """Accept a list of STI-CAs and a CRL with lower numbers than the last ones, once.

    For an STI-PA that restarted its numbering, or an authority that was moved to another service.
    Ask the STI-PA first: an old list brings STI-CAs back that were taken off it, an old CRL makes
    revoked certificates good. What it serves now must be signed to its pinned root as ever; the
    last good material stays until then. The journal keeps who was believed before.

    \b
    Examples:
      kmsctl trust forget sti-pa
      kmsctl trust forget sti-pa --yes -o json | jq .after.sequence
    """
    run = invocation.of(context)
    if not yes:
        about = f"An older list of STI-CAs and an older CRL of {authority} may be accepted now."
        confirmed(authority, "forget", about, group="trust ")
    with connection.admin(run.address()) as admin:
        request = pb.ForgetTrustRequest(authority=authority)
        answer = admin.ForgetTrust(request, timeout=run.timeout or PATIENCE)
    document = answers.forgotten(answer)
    run.show(document, lambda page: details.forgotten(document, page))
    return ExitCode.OK
