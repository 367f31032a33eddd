"""Logging: one line an event, key=value, to standard error, where systemd's journal takes it.

Only roles and edges log; what libraries warn of comes in the same form. Never a PIN, SPC token,
password or whole signature: what is logged are names, reasons and times.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger


def configure(process: str, stream: TextIO = sys.stderr) -> None:
    """Sets logging up for one process; `process` is in every line, whatever thread wrote it."""

    def name(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    facts: list[Processor] = [
        name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    line = structlog.processors.LogfmtRenderer(
        key_order=["timestamp", "level", "process", "event"], bool_as_flag=False
    )
    structlog.configure(
        processors=[*facts, line],
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    of_libraries = logging.StreamHandler(stream)
    of_libraries.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=facts, processors=[ProcessorFormatter.remove_processors_meta, line]
        )
    )
    logging.basicConfig(handlers=[of_libraries], level=logging.WARNING, force=True)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_of_interest)


def _of_interest(record: logging.LogRecord) -> bool:
    """Not that a caller went while its answer was written: gRPC tells that with a traceback, so
    that any client could fill the log.
    """
    return not str(record.msg).startswith("ExecuteBatchError raised in core")
