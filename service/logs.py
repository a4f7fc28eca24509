"""Log lines: structlog on standard error, as text or JSON, one line per request.

No prompt, no answer and no API key is ever given to a logger. What libraries log through `logging` (uvicorn's
warnings, say) goes the same way. This module holds no state but structlog's own configuration.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Literal

import structlog

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class _StandardError:
    """Takes rendered lines. A standard error that is closed or full loses them, but ends no request."""

    def msg(self, line: str) -> None:
        """Write one line."""
        with suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = msg


def configure_logs(form: Literal["text", "json"] = "text", level: str = "info") -> None:
    """Send every log line of the process to standard error.

    Args:
        form: `text` for people, `json` for machines: one object a line.
        level: least severe level that is written.
    """
    rendering: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    handler = logging.StreamHandler(sys.stderr)  # for libraries; our own lines cost half without `logging`
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for noisy in ("uvicorn", "uvicorn.error", "asyncio", "httpx", "httpcore", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    structlog.configure(
        processors=[*_SHARED, *rendering],
        logger_factory=_StandardError,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=False,
    )


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The service's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
