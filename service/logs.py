"""Log lines: structlog on standard error, as text or JSON, one line per request.

No prompt, no answer and no API key is ever given to a logger. What libraries log through `logging` (uvicorn's
warnings, say) goes the same way. Traces show lines of code and never the values of variables, which may be a
prompt or a key.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import sys
import threading
from collections import deque
from contextlib import suppress
from io import UnsupportedOperation
from typing import Literal

import structlog

_MORE = frozenset(("exc_info", "exception", "stack", "logger", "logger_name"))
_QUOTED = frozenset(" \t=\r\n\"'")  # a text with one of these is shown in quotes

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class StandardError:
    """Standard error that never blocks: whoever reads it slowly, or not at all, holds up no request.

    Lines that it does not take at once wait, in order, for the next line; when too many bytes wait, the
    newest lines are lost, and how many is said as soon as somebody reads again. Used by any thread.

    Args:
        max_waiting_bytes: kept for a reader that lags.
    """

    def __init__(self, max_waiting_bytes: int = 1 << 20) -> None:
        self._max_waiting_bytes = max_waiting_bytes
        self._lock = threading.RLock()  # a signal's handler may log while a line is being written
        self._is_writing = False
        self._waiting: deque[bytes] = deque()
        self._num_waiting_bytes = 0
        self._num_lost = 0

    def msg(self, line: str) -> None:
        """Write one line, or keep it for later."""
        self._put(f"{line}\n")

    def _put(self, text: str) -> None:
        with suppress(OSError, ValueError), self._lock:
            try:
                descriptor = sys.stderr.fileno()
            except UnsupportedOperation:  # a stand-in without a file behind it
                sys.stderr.write(text)
                return
            self._keep(text.encode(errors="backslashreplace"))
            if not self._is_writing:
                self._write_waiting(descriptor)

    debug = info = warning = error = critical = msg

    def write(self, text: str) -> None:
        """For `logging`, which ends each record with a newline of its own."""
        if text.strip():
            self.msg(text.rstrip("\n"))

    def flush(self) -> None:
        """For `logging`; nothing is held back here that could be written."""

    def _keep(self, line: bytes) -> None:
        if self._num_waiting_bytes + len(line) > self._max_waiting_bytes:
            self._num_lost += 1
            return
        self._waiting.append(line)
        self._num_waiting_bytes += len(line)

    def _write_waiting(self, descriptor: int) -> None:
        """Write while that does not block: a ready pipe takes so many bytes at once."""
        self._is_writing = True
        try:
            while self._waiting and select.select([], [descriptor], [], 0)[1]:
                self._write_first(descriptor)
        finally:
            self._is_writing = False

    def _write_first(self, descriptor: int) -> None:
        line = self._waiting[0]
        written = os.write(descriptor, line[: select.PIPE_BUF])  # raises: all of it waits on
        self._waiting.popleft()
        self._num_waiting_bytes -= written
        if written < len(line):
            self._waiting.appendleft(line[written:])
        elif not self._waiting and self._num_lost:
            lost, self._num_lost = self._num_lost, 0
            self._keep(b"%d log lines were lost: standard error was not read\n" % lost)


_CLEAR_LINE = "\r\x1b[2K"


class Terminal(StandardError):
    """Standard error as a person sees it: a line below the log lines may tell what is going on just now."""

    def __init__(self) -> None:
        super().__init__()
        self._below = ""

    def msg(self, line: str) -> None:
        """Write one line above the one that tells what is going on."""
        with self._lock:
            if not self._below:
                super().msg(line)
                return
            self._put(f"{_CLEAR_LINE}{line}\n{self._below}")

    debug = info = warning = error = critical = msg

    def show_below(self, text: str) -> None:
        """Put this into the line below; "" takes it away."""
        with self._lock:
            if text != self._below:
                self._below = text[: shutil.get_terminal_size().columns - 1]
                self._put(_CLEAR_LINE + self._below)


_terminal: Terminal | None = None  # where `configure_logs` found one


def show_below(text: str) -> bool:
    """Tell below the log lines what is going on just now, on a terminal; "" takes it away.

    Returns:
        Whether there is a terminal.
    """
    if _terminal is not None:
        _terminal.show_below(text)
    return _terminal is not None


def configure_logs(
    form: Literal["text", "json"] = "text", level: str = "info", out: StandardError | None = None
) -> None:
    """Send every log line of the process to standard error.

    Args:
        form: `text` for people, `json` for machines: one object a line.
        level: least severe level that is written.
        out: takes the lines; None means standard error.
    """
    global _terminal
    is_seen = out is None and form == "text" and sys.stderr is not None and sys.stderr.isatty()
    _terminal = Terminal() if is_seen else None
    standard_error, rendering = _terminal or out or StandardError(), _rendering(form)
    min_level = logging.getLevelNamesMapping()[level.upper()]
    _send_libraries_logs(standard_error, rendering, min_level)
    structlog.configure(
        processors=[*_SHARED, *rendering],
        logger_factory=lambda *_: standard_error,
        wrapper_class=structlog.make_filtering_bound_logger(min_level),
        cache_logger_on_first_use=False,
    )


def stay_quiet() -> None:
    """For a model inside somebody's program: warnings only, to standard error; the program's own logging, and
    what it has set up of ours, stay as they are.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[*_SHARED, *_rendering("text")],
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        )


def _rendering(form: Literal["text", "json"]) -> list[structlog.typing.Processor]:
    if form == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    has_colors = sys.stderr is not None and sys.stderr.isatty()
    console = structlog.dev.ConsoleRenderer(
        colors=has_colors,
        exception_formatter=structlog.dev.plain_traceback,  # the default one may show variables
    )
    return [console if has_colors else _in_plain_text(console)]


def _in_plain_text(console: structlog.dev.ConsoleRenderer) -> structlog.typing.Processor:
    """What `console` writes without colours, in a third of the time; but lines with a trace are its own."""

    def render(logger: object, name: str, fields: structlog.typing.EventDict) -> str:
        if not _MORE.isdisjoint(fields):
            return str(console(logger, name, fields))
        words = [f"{fields.pop('timestamp')} [{fields.pop('level'):9}] {fields.pop('event')!s:30}"]
        for key in sorted(fields):
            value = fields[key]
            is_plain = isinstance(value, str) and _QUOTED.isdisjoint(value)
            words.append(f"{key}={value if is_plain else repr(value)}")
        return " ".join(words).rstrip(" ")

    return render


def _send_libraries_logs(
    standard_error: StandardError, rendering: list[structlog.typing.Processor], min_level: int
) -> None:
    """Let libraries log the same way; our own lines cost half without `logging`."""
    handler = logging.StreamHandler(standard_error)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=min_level, force=True)
    for noisy in ("uvicorn", "uvicorn.error", "asyncio", "httpx", "httpcore", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, min_level))


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The service's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
