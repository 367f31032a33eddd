"""The commands about ACME accounts: `account roll`."""

from typing import Annotated

import typer
from kmsapi.v1 import admin_pb2 as pb

from kmsd.ctl import answers, completion, connection, details, invocation
from kmsd.ctl.failure import ExitCode

PATIENCE = 120.0
"""Seconds: steps that use the account end first, then each STI-CA is asked."""


def roll(
    context: typer.Context,
    profile: Annotated[
        str,
        typer.Argument(
            metavar="PROFILE", help="Name in kmsd.toml.", autocompletion=completion.profiles
        ),
    ],
    issuer: Annotated[
        str,
        typer.Argument(
            metavar="[ISSUER]", help="One STI-CA, as in kmsd.toml; without it: every one."
        ),
    ] = "",
) -> int:
    """Give the profile's ACME account a new key in the HSM, and destroy the old one.

    The account, its orders and its certificates stay (RFC 8555 section 7.3.5, keyChange).
    SPC tokens for the old key die with it: the next order fetches one for the new key. The
    keeper ends a change that was begun, also after a restart.

    \b
    Examples:
      kmsctl account roll acme
      kmsctl account roll acme ca-one -o json | jq -r '.accounts[].thumbprint'
    """
    run = invocation.of(context)
    request = pb.RollAccountKeyRequest(profile=profile, issuer=issuer)
    with connection.admin(run.address()) as admin:
        answer = admin.RollAccountKey(request, timeout=run.timeout or PATIENCE)
    document = answers.accounts(answer)
    run.show(document, lambda page: details.accounts(document, page))
    return ExitCode.OK
