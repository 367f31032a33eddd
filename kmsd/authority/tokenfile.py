"""An SPC token that was fetched on another host and put into a file for us.

For hosts that the STI-PA's IP allow-list keeps out. The file holds the token itself or the
STI-PA's JSON answer; the token is then checked like any other.
"""

import asyncio
from pathlib import Path

from kmsd.errors import Misconfigured, Unavailable
from kmsd.spctoken import Answer, Wanted, read_answer

NEXT_STEP = "Fetch a new SPC token from the STI-PA for this account key, and replace the file."

LIMIT = 65_536
"""Octets of the file, at most."""


def path(template: str, profile: str, spc: str) -> Path:
    """The file of a profile: `template` with {profile} and {spc} filled in.

    Raises Misconfigured (SPC_TOKEN_FILE_UNREADABLE) for a name that would lead elsewhere.
    """
    for word in (profile, spc):
        if not word or "/" in word or "\0" in word or word.startswith("."):
            raise _unreadable(f"{word!r} cannot be part of a file name.")
    return Path(template.replace("{profile}", profile).replace("{spc}", spc))


async def read(file: Path, wanted: Wanted) -> Answer:
    """What the file holds. wanted: what is to be asked for at the STI-PA, while it is missing.

    Raises Unavailable (SPC_TOKEN_FILE_MISSING), Misconfigured.
    """
    try:
        text = await asyncio.to_thread(_text, file)
    except FileNotFoundError as error:
        raise Unavailable(
            "SPC_TOKEN_FILE_MISSING",
            f"There is no SPC token in {file}.",
            next_step=f"Fetch one from the STI-PA for tkvalue {wanted.tkvalue} and fingerprint"
            f" {wanted.fingerprint}, and put it there; kmsd tries again.",
        ) from error
    except OSError as error:
        raise _unreadable(f"{file}: {error.strerror}.") from error
    answer = read_answer(text)
    if answer is None or not answer.token:
        raise _unreadable(f"{file} holds neither an SPC token nor the STI-PA's answer with one.")
    return answer


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(LIMIT).decode("utf-8", "replace")


def _unreadable(why: str) -> Misconfigured:
    return Misconfigured(
        "SPC_TOKEN_FILE_UNREADABLE",
        f"The SPC token file cannot be used: {why}",
        next_step=NEXT_STEP,
    )
