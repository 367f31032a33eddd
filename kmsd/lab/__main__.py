"""python -m kmsd.lab: the lab in the foreground, until SIGTERM or SIGINT."""

import argparse
import logging
import signal
import sys
from pathlib import Path

from kmsd.lab.server import running_lab

_STOP = (signal.SIGTERM, signal.SIGINT)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 after a signal, 2 for bad arguments (argparse)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="lab %(message)s")
    # Blocked before any thread is made, so that the signal waits for sigwait and nothing else.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    with running_lab(
        options.folder,
        spcs=options.spc or ["1234", "567A"],
        calm=options.calm,
        port=options.port,
        cr_port=options.cr_port,
        cr_dir=options.cr_dir,
        seed=options.seed,
    ) as lab:
        for name in options.tls_server:
            lab.tls.server(name)
        for name in options.tls_client:
            lab.tls.client(name)
        sys.stdout.write(f"{options.folder / 'lab.json'}\n")
        sys.stdout.flush()
        signal.sigwait(_STOP)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kmsd.lab",
        description="A hostile STI-PA, STI-CA and STI-CR on loopback HTTPS. Prints the path of "
        "lab.json, with all addresses and files, when it is ready.",
    )
    parser.add_argument("--folder", type=Path, required=True, help="everything it writes")
    parser.add_argument("--port", type=int, default=0, help="of STI-PA and STI-CA; 0: a free one")
    parser.add_argument(
        "--cr-port", type=int, default=0, help="of the STI-CR; any free one when it is taken"
    )
    parser.add_argument("--cr-dir", type=Path, help="chains to serve; <folder>/cr unless given")
    parser.add_argument("--spc", action="append", help="code of the subscriber; repeatable")
    parser.add_argument("--calm", action="store_true", help="not hostile")
    parser.add_argument("--seed", type=int, help="repeatable hostility")
    parser.add_argument(
        "--tls-server", action="append", default=[], help="make <folder>/tls/NAME.{crt,key}"
    )
    parser.add_argument(
        "--tls-client", action="append", default=[], help="the same for spiffe://lab/NAME"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
