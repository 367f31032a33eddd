"""Logging: one line an event, whoever wrote it."""

import io
import logging
import threading
from collections.abc import Iterator

import pytest
import structlog

from kmsd import log


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    log.configure("signer-3", stream)
    yield stream
    structlog.reset_defaults()
    logging.basicConfig(handlers=before, force=True)


def test_every_line_names_the_process_also_from_a_thread(lines: io.StringIO) -> None:
    logger = structlog.get_logger()
    logger.info("here", profile="acme", many=True)
    thread = threading.Thread(target=lambda: logger.warning("there"))
    thread.start()
    thread.join()
    first, second = lines.getvalue().splitlines()
    assert first.endswith("level=info process=signer-3 event=here profile=acme many=true")
    assert second.endswith("level=warning process=signer-3 event=there")


def test_a_line_break_in_a_value_begins_no_line(lines: io.StringIO) -> None:
    structlog.get_logger().error("refused", message='a\nlevel=info event="b"')
    (line,) = lines.getvalue().splitlines()
    assert "\\n" in line


def test_a_defect_is_one_line_with_its_traceback(lines: io.StringIO) -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        structlog.get_logger().error("defect", exc_info=error)
    (line,) = lines.getvalue().splitlines()
    assert "Traceback" in line
    assert "KeyError" in line


def test_what_libraries_warn_of_has_the_same_form(lines: io.StringIO) -> None:
    logging.getLogger("asyncio").error("Task %s\nwas never awaited", 7)
    logging.getLogger("httpx").warning("GET https://secret.example")
    logging.getLogger("asyncio").info("chatter")
    (line,) = lines.getvalue().splitlines()
    assert 'level=error process=signer-3 event="Task 7\\nwas never awaited"' in line


def test_a_client_that_goes_cannot_fill_the_log(lines: io.StringIO) -> None:
    grpc = logging.getLogger("grpc._cython.cygrpc")
    grpc.error("ExecuteBatchError raised in core by servicer method [/kmsapi.v1.Signing/Sign]")
    grpc.error("Unexpected [KeyError] raised by servicer method [/kmsapi.v1.Signing/Sign]")
    (line,) = lines.getvalue().splitlines()
    assert "KeyError" in line
