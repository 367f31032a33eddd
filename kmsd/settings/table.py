"""What every table of kmsd.toml is."""

import msgspec


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table in kmsd.toml."""
