"""One load process: `python -m tests.bench.worker SETUP`. Started by `crew`, and by nothing else.

Connects, says "ready", and then for each order on its standard input makes load and says what it
counted; for `null` it connects anew. Ends with its standard input.
"""

import asyncio
import importlib
import sys
from typing import Final

import msgspec
import uvloop

from tests.bench.figures import Order, Setup
from tests.bench.load import Count, Load

KINDS: Final = {
    "hsm": ("others", "BareHsm"),
    "streams": ("raw", "Streams"),
    "unary": ("raw", "Unary"),
    "calls": ("calls", "Calls"),
    "secsipidx": ("others", "Secsipidx"),
}
"""Where each kind of load is: a process imports, and weighs, only what its own needs."""


async def main(setup: Setup) -> None:
    loop = asyncio.get_running_loop()
    module, name = KINDS[setup.kind]
    load: Load = getattr(importlib.import_module(f"tests.bench.{module}"), name)(setup)
    await load.open()
    _say("ready")
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        order = msgspec.json.decode(line, type=Order | None)
        if order is None:
            await load.close()
            await load.open()
            _say("ready")
        else:
            count = Count(order)
            await load.run(order, count)
            _say(count.tally())
    await load.close()


def _say(what: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.argv[1], type=Setup)))
