"""What a handler of the STI-CA answers, before it is put on the wire."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """body: a JSON object, or bytes of the media type."""

    body: dict[str, Any] | bytes
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
