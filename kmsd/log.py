"""Logging: one line an event, key=value, to standard error, where systemd's journal takes it.

Only roles and edges log. Never a PIN, SPC token, password or whole signature: what is logged are
names, reasons and times.
"""

import logging
import sys
from typing import TextIO

import structlog


def configure(process: str, stream: TextIO = sys.stderr) -> None:
    """Sets logging up for one process; `process` is in every line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.EventRenamer("event"),
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "process", "event"], bool_as_flag=False
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(stream=stream, level=logging.WARNING, format="level=warning %(message)s")
    logging.getLogger("httpx").setLevel(logging.ERROR)
