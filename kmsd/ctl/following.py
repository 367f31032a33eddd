"""Watching the keeper at work, step by step, until it is done; Ctrl-C only stops the watching."""

import time
from collections.abc import Iterator

from kmsapi.v1 import admin_pb2 as pb

from kmsd.ctl import answers, connection, details
from kmsd.ctl.failure import EnrollmentFailed, ExitCode, Interrupted
from kmsd.ctl.invocation import Invocation
from kmsd.ctl.output import ProgressDocument
from kmsd.ctl.steps import Steps
from kmsd.errors import Unavailable


def follow(run: Invocation, verb: str, profile: str) -> int:
    """Shows each step until the profile signs. Raises EnrollmentFailed, Interrupted."""
    look = f"kmsctl credentials --profile {profile}"
    last = _watched(run, _progress(run, verb, profile), f"{verb} {profile}", look)
    if last is None or not last.done:
        raise Unavailable(
            "PROGRESS_ENDED",
            "The keeper stopped telling before it was done; it goes on when it runs again.",
            next_step=look,
        )
    if last.credential.state not in ("active", "rehearsed"):
        raise _failed(last)
    return ExitCode.OK


def follow_revocation(run: Invocation, request: pb.RevokeRequest, patience: float | None) -> int:
    """Shows each step, then the revoked credential. Raises EnrollmentFailed, Interrupted."""
    kept: list[pb.Credential] = []

    def steps() -> Iterator[ProgressDocument]:
        with connection.admin(run.address()) as admin:
            call = admin.Revoke(request, timeout=patience)
            try:
                for answer in call:
                    kept.append(answer.credential)
                    yield answers.progress(answer)
            finally:
                call.cancel()

    look = f"kmsctl credential {request.credential}"
    last = _watched(run, steps(), f"revoke {request.credential}", look, quiet_alone=True)
    if last is not None and last.credential.state == "failed" and not last.credential.revocation:
        raise _failed(last)
    if last is None or not last.credential.revocation:
        raise Unavailable(
            "PROGRESS_ENDED",
            "The keeper stopped telling before it was done; it goes on when it runs again.",
            next_step=look,
        )
    return show(run, kept[-1])


def show(run: Invocation, answer: pb.Credential) -> int:
    """The credential as it is now."""
    document = answers.detailed(answer)
    run.show(document, lambda page: details.credential(document, page))
    return ExitCode.OK


def _watched(
    run: Invocation,
    documents: Iterator[ProgressDocument],
    what: str,
    look: str,
    *,
    quiet_alone: bool = False,
) -> ProgressDocument | None:
    """Shows each step of `what` as it happens; gives the last one.

    quiet_alone: a single step that ends it is not shown: the caller shows what came of it.
    look: the command that tells how far it is. Raises Interrupted, Unavailable.
    """
    last: ProgressDocument | None = None
    try:
        with Steps(run, begun=time.monotonic()) as steps:
            for document in documents:
                if not (quiet_alone and last is None and document.done):
                    steps.add(document)
                last = document
    except KeyboardInterrupt:
        raise Interrupted(
            "INTERRUPTED",
            f"You stopped watching. The keeper goes on to {what}.",
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
    return last


def _failed(last: ProgressDocument) -> EnrollmentFailed:
    trouble = last.credential.trouble
    facts = {"credential": last.credential.id}
    if trouble:
        facts |= {"problem": trouble.problem} if trouble.problem else {}
        facts |= {"artefact": trouble.artefact} if trouble.artefact else {}
    return EnrollmentFailed(
        last.reason or (trouble.reason if trouble else "ENROLLMENT_FAILED"),
        (trouble.message if trouble else "") or last.message,
        next_step=(trouble.next_step if trouble else "")
        or f"kmsctl credential {last.credential.id}",
        **facts,
    )


def _progress(run: Invocation, verb: str, profile: str) -> Iterator[ProgressDocument]:
    with connection.admin(run.address()) as admin:
        match verb:
            case "enroll":
                call = admin.Enroll(pb.EnrollRequest(profile=profile), timeout=run.timeout)
            case "rehearse":
                call = admin.Rehearse(pb.RehearseRequest(profile=profile), timeout=run.timeout)
            case "rollback":
                call = admin.Rollback(pb.RollbackRequest(profile=profile), timeout=run.timeout)
            case _:
                call = admin.Rotate(pb.RotateRequest(profile=profile), timeout=run.timeout)
        try:
            for answer in call:
                yield answers.progress(answer)
        finally:
            call.cancel()
