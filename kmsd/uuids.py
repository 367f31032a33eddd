"""UUIDs for the claim `origid`: random (RFC 4122 section 4.4), from the kernel.

The library's `uuid4` builds an object first, and costs as much as the rest of a payload.
"""

import os


def new_uuid() -> str:
    """A version 4 UUID as text: 122 random bits."""
    text = os.urandom(16).hex()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"
