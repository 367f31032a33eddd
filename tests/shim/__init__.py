"""A slow HSM: SoftHSM behind `slow_hsm.c`, whose C_Sign lasts as long as a network HSM's.

slow = SlowHsm(folder, hsm)       # compiled with cc, once for each folder
slow.settings                     # the [hsm] table that opens it
slow.delay = 0.002                # seconds a C_Sign lasts from now on, also those under way
"""

import mmap
import struct
import subprocess
from pathlib import Path

from msgspec.structs import replace

from kmsd import settings

SOURCE = Path(__file__).with_name("slow_hsm.c")
HOUR = 3600.0
"""A delay that no test waits for: a call that lasts this long is held until the delay changes."""


class SlowHsm:
    """An HSM made slow, and what its callers do to it. No login: that is the caller's.

    hsm: the [hsm] table of the HSM behind it. settings: the table to use instead.
    """

    def __init__(self, folder: Path, hsm: settings.Hsm, delay: float = 0.0) -> None:
        module = compiled(folder)
        state = folder / "slow-hsm.state"
        state.write_bytes(bytes(_LAYOUT.size))
        with state.open("r+b") as file:
            self._state = mmap.mmap(file.fileno(), _LAYOUT.size)
        self.delay = delay
        named = {"SLOW_HSM_MODULE": hsm.module, "SLOW_HSM_STATE": str(state)}
        self.settings = replace(hsm, module=str(module), environment=hsm.environment | named)

    @property
    def delay(self) -> float:
        """Seconds that a C_Sign lasts."""
        return self._number(0) / 1e6

    @delay.setter
    def delay(self, seconds: float) -> None:
        struct.pack_into("=Q", self._state, 0, round(seconds * 1e6))

    @property
    def calls(self) -> int:
        """How many C_Sign have returned, of all processes."""
        return self._number(1)

    @property
    def inside(self) -> int:
        """How many are in C_Sign now."""
        return self._number(2)

    @property
    def most(self) -> int:
        """How many were in C_Sign at the same time, at most."""
        return self._number(3)

    def _number(self, index: int) -> int:
        number: int = struct.unpack_from("=Q", self._state, 8 * index)[0]
        return number


def compiled(folder: Path) -> Path:
    """The PKCS#11 module, made from its source with the machine's C compiler."""
    module = folder / "slow_hsm.so"
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    subprocess.run(["cc", *flags, "-o", module, SOURCE, "-ldl"], check=True)
    return module


_LAYOUT = struct.Struct("=4Q")
