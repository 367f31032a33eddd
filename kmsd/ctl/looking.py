"""The commands that look and change nothing: status, profiles, credentials, credential."""

from typing import Annotated

import typer
from kmsapi.v1 import admin_pb2 as pb

from kmsd.ctl import answers, completion, connection, details, invocation, tables
from kmsd.ctl.failure import ExitCode
from kmsd.ctl.output import Condition, CredentialsDocument, ProfilesDocument
from kmsd.errors import NotFound

_ENDS = {
    Condition.OK: ExitCode.OK,
    Condition.DEGRADED: ExitCode.DEGRADED,
    Condition.NEEDS_PERSON: ExitCode.NEEDS_PERSON,
}


def status(context: typer.Context) -> int:
    """The whole key room on one screen, with alarms and what to do about them.

    Keeper, HSM, signers, trust material, and the profiles, the most urgent first. The exit
    code is made for monitoring: 0 all is well, 3 degraded and kmsd is at work on it, 4 a
    person must take the step that an alarm names, 1 the keeper did not answer.

    \b
    Examples:
      kmsctl status
      kmsctl status -o json | jq .condition
      kmsctl status >/dev/null || page-the-operator
    """
    run = invocation.of(context)
    address = run.address()
    with connection.admin(address) as admin:
        answer = admin.GetStatus(pb.GetStatusRequest(), timeout=run.patience)
    document = answers.status(answer, address)
    run.show(document, lambda page: tables.status(document, page))
    return _ENDS[document.condition]


def profiles(context: typer.Context) -> int:
    """What each profile signs with, until when, what happens next and what that waits for.

    \b
    Examples:
      kmsctl profiles
      kmsctl profiles -o wide
      kmsctl profiles -o json | jq -r '.profiles[] | select(.active == null) | .name'
    """
    run = invocation.of(context)
    with connection.admin(run.address()) as admin:
        answer = admin.ListProfiles(pb.ListProfilesRequest(), timeout=run.patience)
    document = ProfilesDocument(profiles=tuple(map(answers.profile, answer.profiles)))
    run.show(document, lambda page: tables.profiles(document.profiles, page))
    return ExitCode.OK


def credentials(
    context: typer.Context,
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            "-p",
            metavar="PROFILE",
            help="Only those of this profile.",
            autocompletion=completion.profiles,
        ),
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Also those whose key is destroyed.")
    ] = False,
) -> int:
    """The credentials (key, chain and x5u), newest first.

    Tables show the first 8 digits of an id; every command takes any unique beginning.

    \b
    Examples:
      kmsctl credentials
      kmsctl credentials --profile acme --all
      kmsctl credentials -o wide
    """
    run = invocation.of(context)
    request = pb.ListCredentialsRequest(profile=profile, include_destroyed=everything)
    with connection.admin(run.address()) as admin:
        answer = admin.ListCredentials(request, timeout=run.patience)
    document = CredentialsDocument(credentials=tuple(map(answers.credential, answer.credentials)))
    run.show(document, lambda page: tables.credentials(document.credentials, page))
    return ExitCode.OK


def credential(
    context: typer.Context,
    credential: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Id of the credential, or a unique beginning of it.",
            autocompletion=completion.credentials,
        ),
    ],
    chain: Annotated[
        bool, typer.Option("--chain", help="Print the PEM chain and nothing else.")
    ] = False,
) -> int:
    """One credential: its life, its chain, and the birth record that proves where its key is from.

    The birth record is what was read back from the HSM right after the key was made; the last
    line says whether the leaf certificate carries that key.

    \b
    Examples:
      kmsctl credential 1a2b3c4d
      kmsctl credential 1a2b3c4d --chain | openssl x509 -noout -text
      kmsctl credential 1a2b3c4d -o json | jq .birth
    """
    run = invocation.of(context)
    with connection.admin(run.address()) as admin:
        answer = admin.GetCredential(
            pb.GetCredentialRequest(credential=credential), timeout=run.patience
        )
    if chain:
        if not answer.chain:
            raise NotFound(
                "CHAIN_ABSENT",
                f"Credential {answer.id} has no certificate chain: it is {answer.state}.",
                next_step=f"kmsctl credential {answer.id}",
            )
        typer.echo(answer.chain, nl=not answer.chain.endswith("\n"))
        return ExitCode.OK
    document = answers.detailed(answer)
    run.show(document, lambda page: details.credential(document, page))
    return ExitCode.OK
