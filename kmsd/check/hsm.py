"""Checks of the HSM: the module loads, the token is there, the PIN is right, the keys are known.

In a process of its own (`hsmprobe`), because a PKCS#11 module may hang or crash, and then only
killing that process helps.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator

import msgspec

from kmsd.check.files import is_out_of_sight
from kmsd.check.finding import Finding, error, ok, warning
from kmsd.check.records import Keys
from kmsd.hsmprobe import Asked, Seen, Trouble
from kmsd.settings import Configuration

SHOWN = 5
"""Keys named one by one; the rest is counted."""


async def token(configuration: Configuration, keys: Keys | None) -> tuple[Finding, ...]:
    """keys: what should be on the token; None: nobody knows."""
    if is_out_of_sight(configuration.hsm.pin):
        return (warning("hsm", "The PIN is a systemd credential; the login was not tried."),)
    status, output = await _probed(Asked(configuration.hsm, configuration.run))
    try:
        answer: Seen | Trouble = msgspec.json.decode(output.splitlines()[-1], type=Seen | Trouble)
    except (IndexError, msgspec.DecodeError):
        return (error("hsm", f"The module ended the process that used it ({_end(status)})."),)
    match answer:
        case Trouble():
            return (error("hsm", answer.message, answer.next_step),)
        case Seen():
            return tuple(_compared(answer, keys))


async def _probed(asked: Asked) -> tuple[int, bytes]:
    probe = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kmsd.hsmprobe",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await probe.communicate(msgspec.json.encode(asked))
    finally:
        if probe.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                probe.kill()
            await probe.wait()
    return probe.returncode or 0, output


def _compared(seen: Seen, keys: Keys | None) -> Iterator[Finding]:
    yield ok(
        "hsm",
        f"{seen.module}: token {seen.token!r}, serial {seen.serial}, logged in; "
        f"{len(seen.ours)} keys, {seen.foreign} foreign objects.",
    )
    if keys is None:
        return
    missing = [(key, whose) for key, whose in keys.made.items() if key not in seen.ours]
    for key, whose in missing[:SHOWN]:
        yield error(
            "hsm",
            f"The key {key} of {whose} is not on this token.",
            "Is it the right token? Its serial number is in the birth record.",
        )
    if missing[SHOWN:]:
        yield error("hsm", f"{len(missing) - SHOWN} more keys are not on this token.")
    unknown = sorted(set(seen.ours) - keys.known)
    if unknown:
        yield warning(
            "hsm",
            f"{len(unknown)} keys of kmsd on this token are in no record, such as {unknown[0]}.",
            "Nothing is done with them. Does another store use this token?",
        )


def _end(status: int) -> str:
    if status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"
