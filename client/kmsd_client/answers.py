"""What comes back: signatures, and what is heard about credentials.

Not here: refusals, which are errors (`kmsd_client.errors`).
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from kmsapi.v1 import signing_pb2 as pb

from kmsd_client.errors import SigningError
from kmsd_client.refusals import error_of_refusal


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature; `str(signed)` is the Identity header value.

    identity: complete value of the SIP Identity header field (RFC 8224 section 4). Not in the
        repr, because a whole signature has no business in a log.
    origid: the claim `origid` as signed, for traceback and call records; "" unless shaken.
    epoch: version of the keyring it was signed under; one for a whole frame.
    """

    identity: str = field(repr=False)
    origid: str
    epoch: int

    def __str__(self) -> str:
        return self.identity


@dataclass(frozen=True, slots=True)
class ActiveCredential:
    """A profile signs with this from now on; all public.

    profile: its name. spc: service provider code in the certificate's TNAuthList (RFC 8226).
    credential: id, 16 hex digits. x5u: URL of the chain, as in the header of what is signed.
    spki_sha256: SHA-256 of the DER SubjectPublicKeyInfo, lower-case hex.
    not_before, not_after: certificate validity, seconds since 1970-01-01 UTC.
    epoch: version of the keyring; of no account when two are compared.
    """

    profile: str
    spc: str
    credential: str
    x5u: str
    spki_sha256: str
    not_before: int
    not_after: int
    epoch: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class ComingCredential:
    """A profile will sign with this next: its chain is public at `x5u`, where it can be fetched
    and checked before the first call brings it. Nothing is signed with it yet.

    `ActiveCredential` of the same `credential` says that it has come; `CalledOff`, that it will
    not; another one takes its place. Fields as of `ActiveCredential`.
    """

    profile: str
    spc: str
    credential: str
    x5u: str
    spki_sha256: str
    not_before: int
    not_after: int
    epoch: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class CalledOff:
    """What was coming for a profile will not become active; what is active stays."""

    profile: str
    epoch: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A profile cannot sign any more."""

    profile: str
    epoch: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Synced:
    """All that is known now was told; what follows are changes. Comes again after a reconnect."""

    epoch: int


CredentialChange: TypeAlias = ActiveCredential | ComingCredential | CalledOff | Withdrawn | Synced


def results_of(request: pb.SignRequest, response: pb.SignResponse) -> list[Signed | SigningError]:
    """One outcome for each PASSporT of the request, in its order.

    Raises the refusal of the whole frame, and SigningError "BAD_ANSWER" for an answer that
    does not fit the request: rather no signature than somebody else's.
    """
    if response.HasField("refusal"):
        raise error_of_refusal(response.refusal)
    if response.sequence != request.sequence or len(response.results) != len(request.passports):
        raise bad_answer("The signer's answer does not fit the request.")
    epoch = response.epoch
    return [outcome_of(result, epoch) for result in response.results]


def outcome_of(result: pb.SignResult, epoch: int) -> Signed | SigningError:
    """One PASSporT's: a signature, its refusal, or SigningError "BAD_ANSWER" for neither."""
    signed = result.signed
    if identity := signed.identity:
        return Signed(identity, signed.origid, epoch)
    if result.HasField("refusal"):
        return error_of_refusal(result.refusal)
    return bad_answer("The signer's answer holds neither signature nor refusal.")


def bad_answer(message: str) -> SigningError:
    """What is told instead of a signature that may be somebody else's."""
    return SigningError("BAD_ANSWER", message)


def change_of(event: pb.CredentialEvent) -> CredentialChange | None:
    """One event of a watch; None for a kind that this version does not know."""
    match event.WhichOneof("event"):
        case "active":
            return ActiveCredential(*_public(event.active), event.epoch)
        case "coming":
            return ComingCredential(*_public(event.coming), event.epoch)
        case "called_off":
            return CalledOff(event.called_off, event.epoch)
        case "withdrawn":
            return Withdrawn(event.withdrawn, event.epoch)
        case "synced":
            return Synced(event.epoch)
        case None:
            return None


def _public(
    one: pb.ActiveCredential | pb.ComingCredential,
) -> tuple[str, str, str, str, str, int, int]:
    return (
        one.profile,
        one.spc,
        one.credential,
        one.x5u,
        one.spki_sha256,
        one.not_before,
        one.not_after,
    )
