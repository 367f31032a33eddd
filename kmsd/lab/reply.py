"""What a handler of the STI-CA answers, before it is put on the wire."""

import email.utils
import time
from dataclasses import dataclass, field
from typing import Any

from kmsd.lab.switches import Switches


@dataclass(frozen=True)
class Reply:
    """body: a JSON object, or bytes of the media type."""

    body: dict[str, Any] | bytes
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def retry_after(switches: Switches, seconds: int) -> dict[str, str]:
    """The header, in the form that is switched on."""
    if switches.retry_after_form == "date":
        # By the clock that the server's Date header is from, whatever the lab's own says.
        return {"Retry-After": email.utils.formatdate(time.time() + seconds, usegmt=True)}
    return {"Retry-After": str(seconds)}
