"""What may be asked of a profile or a credential in the state it is in, and the refusals of the
rest. Pure: what is asked for is done by `keeper`.
"""

from collections.abc import Iterable

from kmsd.errors import NotFound, Precondition, Unavailable
from kmsd.model import Active, Credential


def check_begin(profile: str, credentials: Iterable[Credential], *, rotate: bool) -> None:
    """A first credential is enrolled, another one rotated to. credentials: the profile's own.

    Raises Precondition (PROFILE_ACTIVE, PROFILE_NOT_ENROLLED).
    """
    active = any(isinstance(credential.state, Active) for credential in credentials)
    if active and not rotate:
        raise Precondition(
            "PROFILE_ACTIVE",
            f"Profile {profile} has an active credential already.",
            next_step=f"For a new key and certificate: kmsctl rotate {profile}",
            profile=profile,
        )
    if rotate and not active:
        raise Precondition(
            "PROFILE_NOT_ENROLLED",
            f"Profile {profile} has no active credential to rotate.",
            next_step=f"Enroll its first one: kmsctl enroll {profile}",
            profile=profile,
        )


def unknown_profile(name: str) -> NotFound:
    """There is none of this name in the configuration; name: as somebody typed it."""
    return NotFound(
        "PROFILE_UNKNOWN",
        f"There is no profile {name[:64]!r} in the configuration.",
        next_step="See those there are: kmsctl profiles",
        profile=name[:64],
    )


def wrong_state(credential: Credential, verb: str, why: str) -> Precondition:
    """It cannot be `verb` (a participle). why: a sentence."""
    state = type(credential.state).__name__.lower()
    return Precondition(
        "CREDENTIAL_STATE",
        f"Credential {credential.id} is {state} and cannot be {verb}. {why}",
        next_step=f"See it: kmsctl credential {credential.id}",
        credential=credential.id,
        state=state,
    )


def busy(credential: Credential) -> Unavailable:
    """It is given up, but not yet."""
    return Unavailable(
        "CREDENTIAL_BUSY",
        f"Credential {credential.id} is in the middle of a step; it is given up right after it, "
        "unless that step makes it active.",
        next_step=f"See it: kmsctl credential {credential.id}",
        credential=credential.id,
    )
