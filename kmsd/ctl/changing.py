"""The commands that change what the keeper keeps: enroll, rotate, revoke, destroy, restore.

What cannot be undone asks first: on a terminal the id is typed again, a program says --yes.
"""

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from kmsapi.v1 import admin_pb2 as pb

from kmsd.ctl import answers, completion, connection, details, invocation
from kmsd.ctl.failure import EnrollmentFailed, ExitCode, Interrupted, UsageError
from kmsd.ctl.invocation import Invocation
from kmsd.ctl.output import REVOCATION_CODES, ProgressDocument, RevocationReason
from kmsd.ctl.page import SHORT, plain
from kmsd.ctl.steps import Steps
from kmsd.errors import Unavailable

_Profile = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE", help="Name in kmsd.toml.", autocompletion=completion.profiles
    ),
]
_Credential = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Id of the credential, or a unique beginning of it.",
        autocompletion=completion.credentials,
    ),
]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask (for programs).")]


def enroll(context: typer.Context, profile: _Profile) -> int:
    """Get a profile's first credential and follow it until the profile signs with it.

    A key is made in the HSM, an STI-CA issues a certificate for it, the chain is published and
    fetched back, and the signers switch. Each step is shown as it happens, with what is waited
    for. Ctrl-C only stops the watching: the keeper goes on. With -o json each step is one
    document on its own line.

    \b
    Examples:
      kmsctl enroll acme
      kmsctl enroll acme -o json | jq -r .message
    """
    return _follow(invocation.of(context), "enroll", profile)


def rotate(context: typer.Context, profile: _Profile) -> int:
    """Get a new key and certificate, switch every signer to them, retire the old ones.

    The keeper rotates by itself in time; this is for now, after a suspicion or for an
    exercise. Signing goes on meanwhile, and the old chain stays public.

    \b
    Examples:
      kmsctl rotate acme
      kmsctl rotate acme -o json | tail -n1 | jq .credential.id
    """
    return _follow(invocation.of(context), "rotate", profile)


def revoke(
    context: typer.Context,
    credential: _Credential,
    reason: Annotated[
        RevocationReason, typer.Option("--reason", help="Why, in the words of RFC 5280.")
    ],
    even_if_active: Annotated[
        bool,
        typer.Option(
            "--even-if-active",
            help="Also when the profile signs with it: signing for the profile stops.",
        ),
    ] = False,
    yes: _Yes = False,
) -> int:
    """Ask the STI-CA to revoke a certificate. Cannot be undone.

    A credential that a profile signs with is refused unless --even-if-active: rotate first
    when there is time. Verifiers learn of it by the STI-PA's CRL, not at once.

    \b
    Examples:
      kmsctl rotate acme && kmsctl revoke 1a2b3c4d --reason superseded
      kmsctl revoke 1a2b3c4d --reason keyCompromise --even-if-active
    """
    run = invocation.of(context)
    with connection.admin(run.address()) as admin:
        if not yes:
            found = admin.GetCredential(
                pb.GetCredentialRequest(credential=credential), timeout=run.patience
            )
            credential = _confirmed(found, "revoke", "The certificate is revoked for good.")
        answer = admin.Revoke(
            pb.RevokeRequest(
                credential=credential,
                reason=REVOCATION_CODES[reason],
                even_if_active=even_if_active,
            ),
            timeout=run.timeout or 60.0,  # the STI-CA is asked while we wait
        )
    return _shown(run, answer)


def destroy(context: typer.Context, credential: _Credential, yes: _Yes = False) -> int:
    """Schedule the destruction of the key of a retired or failed credential.

    One that is still on its way is given up first, so that its profile can begin anew.
    Until the time that is shown, `kmsctl restore` takes it back; after that the key is gone
    from the HSM for good. A key that a profile signs with is never destroyed.

    \b
    Examples:
      kmsctl destroy 1a2b3c4d
      kmsctl destroy 1a2b3c4d --yes -o json | jq -r .credential.destroy_at
    """
    run = invocation.of(context)
    with connection.admin(run.address()) as admin:
        if not yes:
            found = admin.GetCredential(
                pb.GetCredentialRequest(credential=credential), timeout=run.patience
            )
            words = "Its key will be destroyed in the HSM; until then it can be restored."
            credential = _confirmed(found, "destroy", words)
        answer = admin.Destroy(pb.DestroyRequest(credential=credential), timeout=run.patience)
    return _shown(run, answer)


def restore(context: typer.Context, credential: _Credential) -> int:
    """Take a scheduled destruction back, as long as the key still exists.

    \b
    Example:
      kmsctl restore 1a2b3c4d
    """
    run = invocation.of(context)
    with connection.admin(run.address()) as admin:
        answer = admin.Restore(pb.RestoreRequest(credential=credential), timeout=run.patience)
    return _shown(run, answer)


def _shown(run: Invocation, answer: pb.Credential) -> int:
    document = answers.detailed(answer)
    run.show(document, lambda page: details.credential(document, page))
    return ExitCode.OK


def _confirmed(found: pb.Credential, verb: str, consequence: str) -> str:
    """The whole id, when a person at a terminal types it. Raises UsageError."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "CONFIRMATION_MISSING",
            f"There is no terminal to confirm it on: {verb} {found.id}. Nothing was changed.",
            next_step=f"A program confirms with --yes: kmsctl {verb} {found.id} --yes",
        )
    about = f"{found.id} of {found.profile} (SPC {found.spc}) is {found.state}. {consequence}"
    typer.echo(plain(about), err=True)
    typed = typer.prompt(f"Type the id to {verb} it", err=True, default="", show_default=False)
    if typed.strip() not in (found.id, found.id[:SHORT]):
        raise UsageError(
            "CONFIRMATION_WRONG",
            "That is not its id. Nothing was changed.",
            next_step=f"kmsctl credential {found.id}",
        )
    return found.id


def _follow(run: Invocation, verb: str, profile: str) -> int:
    """Shows each step until the profile signs. Raises EnrollmentFailed, Interrupted."""
    look = f"kmsctl credentials --profile {profile}"
    last: ProgressDocument | None = None
    try:
        with Steps(run, begun=time.monotonic()) as steps:
            for last in _progress(run, verb, profile):
                steps.add(last)
    except KeyboardInterrupt:
        raise Interrupted(
            "INTERRUPTED",
            f"You stopped watching. The keeper goes on to {verb} {profile}.",
            next_step=look,
        ) from None
    except Unavailable as error:
        if last is None:
            raise
        raise Unavailable(
            error.reason,
            f"{error.message} What was begun is not lost: the keeper goes on where it was.",
            next_step=f"kmsctl credential {last.credential.id}",
        ) from error
    if last is None or not last.done:
        raise Unavailable(
            "PROGRESS_ENDED",
            "The keeper stopped telling before it was done; it goes on when it runs again.",
            next_step=look,
        )
    if last.credential.state != "active":
        trouble = last.credential.trouble
        facts = {"credential": last.credential.id}
        if trouble:
            facts |= {"problem": trouble.problem} if trouble.problem else {}
            facts |= {"artefact": trouble.artefact} if trouble.artefact else {}
        raise EnrollmentFailed(
            last.reason or (trouble.reason if trouble else "ENROLLMENT_FAILED"),
            (trouble.message if trouble else "") or last.message,
            next_step=(trouble.next_step if trouble else "")
            or f"kmsctl credential {last.credential.id}",
            **facts,
        )
    return ExitCode.OK


def _progress(run: Invocation, verb: str, profile: str) -> Iterator[ProgressDocument]:
    with connection.admin(run.address()) as admin:
        if verb == "enroll":
            call = admin.Enroll(pb.EnrollRequest(profile=profile), timeout=run.timeout)
        else:
            call = admin.Rotate(pb.RotateRequest(profile=profile), timeout=run.timeout)
        try:
            for answer in call:
                yield answers.progress(answer)
        finally:
            call.cancel()
