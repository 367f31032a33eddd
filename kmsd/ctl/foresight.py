"""The commands that tell why and when: explain, plan."""

from typing import Annotated

import typer
from kmsapi.v1 import admin_pb2 as pb

from kmsd.ctl import answers, completion, connection, details, invocation, tables
from kmsd.ctl.failure import ExitCode

PATIENCE = 60.0
"""Seconds: a calendar of thousands of profiles takes the keeper a while."""


def explain(
    context: typer.Context,
    about: Annotated[
        str,
        typer.Argument(
            metavar="CREDENTIAL|PROFILE",
            help="Id of a credential, or a unique beginning of it; or a profile's name.",
            autocompletion=completion.profiles_and_credentials,
        ),
    ],
) -> int:
    """Why a credential is in its state, what must be true next, and who can see to it.

    Of a profile: what it signs with, and what is on its way. The last line is what you can type
    now; without one, nothing you could do would help.

    \b
    Examples:
      kmsctl explain acme
      kmsctl explain 1a2b3c4d
      kmsctl explain acme -o json | jq -r '.explanations[].who'
    """
    run = invocation.of(context)
    with connection.admin(run.address()) as admin:
        answer = admin.Explain(pb.ExplainRequest(about=about), timeout=run.patience)
    document = answers.explanations(answer)
    run.show(document, lambda page: details.explanations(document, page))
    return ExitCode.OK


def plan(
    context: typer.Context,
    days: Annotated[
        int, typer.Option("--days", metavar="N", help="How far to look ahead.", min=1, max=3660)
    ] = 90,
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            "-p",
            metavar="PROFILE",
            help="Only this profile's.",
            autocompletion=completion.profiles,
        ),
    ] = "",
) -> int:
    """The calendar: every renewal, retirement, destruction of a key and expiry that is to come.

    It is played with the keeper's own plan, as if every renewal succeeded at once and every
    certificate lived as long as the one before it. What an STI-CA will suggest for certificates
    that do not exist yet is not known. At most 10000 entries are given.

    \b
    Examples:
      kmsctl plan
      kmsctl plan --days 400 --profile acme
      kmsctl plan --days 400 -o json | jq -r '.entries[] | select(.what == "renew") | .at'
    """
    run = invocation.of(context)
    request = pb.PlanRequest(days=days, profile=profile)
    with connection.admin(run.address()) as admin:
        answer = admin.Plan(request, timeout=run.timeout or PATIENCE)
    document = answers.plan(answer)
    run.show(document, lambda page: tables.plan(document, page))
    return ExitCode.OK
