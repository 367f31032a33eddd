"""What holds for every test."""

import signal


def pytest_configure() -> None:
    """Ctrl-C works in the programs under test, also where the tests run in the background.

    A shell lets a background job ignore SIGINT, and what it starts inherits that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
