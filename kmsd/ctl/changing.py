"""The commands that change what the keeper keeps: enroll, rotate, rollback, revoke, destroy,
restore.

What cannot be undone asks first: on a terminal the id is typed again, a program says --yes.
"""

import sys
from typing import Annotated

import typer
from kmsapi.v1 import admin_pb2 as pb

from kmsd.ctl import completion, connection, following, invocation
from kmsd.ctl.failure import UsageError
from kmsd.ctl.output import REVOCATION_CODES, RevocationReason
from kmsd.ctl.page import SHORT, plain

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
    return following.follow(invocation.of(context), "enroll", profile)


def rotate(
    context: typer.Context,
    profile: _Profile,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse", help="Everything but the switch, at the STI-CA's staging service."
        ),
    ] = False,
) -> int:
    """Get a new key and certificate, switch every signer to them, retire the old ones.

    The keeper rotates by itself in time; this is for now, after a suspicion or for an
    exercise. Signing goes on meanwhile, and the old chain stays public.

    --rehearse needs staging_directory of an issuer of the profile. A key is made, a real SPC token
    is used, a chain is issued, judged, published at a URL of its own, fetched back, and a canary
    verified; then key and chain are taken away. What signs calls is not touched.

    \b
    Examples:
      kmsctl rotate acme
      kmsctl rotate acme --rehearse
      kmsctl rotate acme -o json | tail -n1 | jq .credential.id
    """
    return following.follow(invocation.of(context), "rehearse" if rehearse else "rotate", profile)


def rollback(context: typer.Context, profile: _Profile) -> int:
    """Go back to the credential that the profile signed with before.

    Possible while its certificate is valid and not revoked and its key is kept (policy
    hold_key_days). Its chain is fetched back and a canary verified before any signer switches.
    The present one is retired, not destroyed: another rollback leads back to it. No renewal
    undoes it before the last part of the certificate's lifetime.

    \b
    Examples:
      kmsctl rollback acme
      kmsctl rollback acme -o json | tail -n1 | jq .credential.id
    """
    return following.follow(invocation.of(context), "rollback", profile)


def revoke(
    context: typer.Context,
    credential: _Credential,
    reason: Annotated[
        RevocationReason, typer.Option("--reason", help="Why, in the words of RFC 5280.")
    ],
    even_if_active: Annotated[
        bool,
        typer.Option(
            "--now",
            "--even-if-active",
            help="Revoke first, also when the profile signs with it: signing for it stops.",
        ),
    ] = False,
    by_certificate_key: Annotated[
        bool,
        typer.Option(
            "--by-certificate-key",
            help="Sign the request with the certificate's own key, not with the account's.",
        ),
    ] = False,
    yes: _Yes = False,
) -> int:
    """Ask the STI-CA to revoke a certificate. Cannot be undone.

    keyCompromise: the profile gets a new credential first, each step is shown, then the
    certificate is revoked and its key destroyed at once. The keeper remembers this across
    restarts, and goes on when you stop watching; until the STI-CA was asked `kmsctl restore`
    takes it back. While no STI-CA issues, the profile goes on signing with the old key; with
    --now that ends at once, and calls go unsigned until there is a new one.

    Any other reason: one request to the STI-CA. What a profile signs with is refused unless
    --now: rotate first. Verifiers learn of it by the STI-PA's CRL, not at once.

    \b
    Examples:
      kmsctl revoke 1a2b3c4d --reason keyCompromise
      kmsctl rotate acme && kmsctl revoke 1a2b3c4d --reason superseded
      kmsctl revoke 1a2b3c4d --reason superseded --by-certificate-key --yes
    """
    run = invocation.of(context)
    with connection.admin(run.address()) as admin:
        if not yes:
            found = admin.GetCredential(
                pb.GetCredentialRequest(credential=credential), timeout=run.patience
            )
            credential = _confirmed(found, "revoke", "The certificate is revoked for good.")
    request = pb.RevokeRequest(
        credential=credential,
        reason=REVOCATION_CODES[reason],
        even_if_active=even_if_active,
        by_certificate_key=by_certificate_key,
    )
    compromised = reason is RevocationReason.KEY_COMPROMISE
    # The STI-CA is asked while we wait; a new credential takes as long as it takes.
    patience = run.timeout or (None if compromised else 60.0)
    return following.follow_revocation(run, request, patience)


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
    return following.show(run, answer)


def restore(context: typer.Context, credential: _Credential) -> int:
    """Take a scheduled destruction back, as long as the key still exists.

    The same for a revocation for keyCompromise that waits for the new credential.

    \b
    Example:
      kmsctl restore 1a2b3c4d
    """
    run = invocation.of(context)
    with connection.admin(run.address()) as admin:
        answer = admin.Restore(pb.RestoreRequest(credential=credential), timeout=run.patience)
    return following.show(run, answer)


def _confirmed(found: pb.Credential, verb: str, consequence: str) -> str:
    """The whole id, when a person at a terminal types it. Raises UsageError."""
    about = f"{found.id} of {found.profile} (SPC {found.spc}) is {found.state}. {consequence}"
    confirmed(found.id, verb, about, short=found.id[:SHORT])
    return found.id


def confirmed(name: str, verb: str, about: str, *, short: str = "", group: str = "") -> None:
    """Returns when a person at a terminal types the name, or `short`. Raises UsageError.

    group: of the command, with a blank.
    """
    what = "id" if short else "name"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "CONFIRMATION_MISSING",
            f"There is no terminal to confirm it on: {verb} {name}. Nothing was changed.",
            next_step=f"A program confirms with --yes: kmsctl {group}{verb} {name} --yes",
        )
    typer.echo(plain(about), err=True)
    typed = typer.prompt(f"Type the {what} to {verb} it", err=True, default="", show_default=False)
    if typed.strip() not in (name, short or name):
        raise UsageError(
            "CONFIRMATION_WRONG",
            f"That is not its {what}. Nothing was changed.",
            next_step=f"kmsctl credential {name}" if short else "kmsctl status",
        )
