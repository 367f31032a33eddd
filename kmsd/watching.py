"""What a watch of credentials tells: everything once, `synced`, and then every change.

Values of `live` in, messages of the API out. Not here: who may watch what (`signing`).
"""

from collections.abc import AsyncGenerator, Callable

from kmsapi.v1.signing_pb2 import ActiveCredential, ComingCredential, CredentialEvent, Synced

from kmsd.live import LOST, Change, End, Live
from kmsd.ring import Coming, Entry


async def events(
    live: Live, concerns: Callable[[str], bool]
) -> AsyncGenerator[CredentialEvent, None]:
    """Of the profiles that concern the reader. Ends when the watch ends, or it reads too slowly."""
    with live.watch() as changes:
        # It may go on while these are sent; what that changes comes after.
        known: list[Entry | Coming] = [*live.entries(), *live.coming()]
        epoch = live.epoch
        for one in known:
            if concerns(one.profile):
                yield _event(Change(epoch, one.profile, one))
        yield CredentialEvent(epoch=epoch, synced=Synced())
        while (change := await changes.get()) is not LOST:
            if concerns(change.profile):
                yield _event(change)


def _event(change: Change) -> CredentialEvent:
    epoch = change.epoch
    match change.news:
        case Entry() as entry:
            return CredentialEvent(epoch=epoch, active=_active(entry))
        case Coming() as coming:
            return CredentialEvent(epoch=epoch, coming=_coming(coming))
        case End.WITHDRAWN:
            return CredentialEvent(epoch=epoch, withdrawn=change.profile)
        case End.CALLED_OFF:
            return CredentialEvent(epoch=epoch, called_off=change.profile)


def _active(entry: Entry) -> ActiveCredential:
    return ActiveCredential(
        profile=entry.profile,
        spc=entry.spc,
        credential=entry.credential,
        x5u=entry.x5u,
        spki_sha256=entry.spki_sha256,
        not_before=entry.not_before,
        not_after=entry.not_after,
    )


def _coming(coming: Coming) -> ComingCredential:
    return ComingCredential(
        profile=coming.profile,
        spc=coming.spc,
        credential=coming.credential,
        x5u=coming.x5u,
        spki_sha256=coming.spki_sha256,
        not_before=coming.not_before,
        not_after=coming.not_after,
    )
