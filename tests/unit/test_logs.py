"""Log lines: their two forms, their levels, and a standard error that cannot be written to."""

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
import structlog

from service.engine.sequence import FinishReason
from service.logs import StandardError, configure_logs, get_logger


@pytest.fixture(autouse=True)
def usual_logs_afterwards() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_json_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json")
    get_logger().info("request", status=200)
    [line] = lines_of(capsys)
    found = json.loads(line)
    assert found.pop("timestamp").endswith("Z")
    assert found == {"event": "request", "level": "info", "status": 200}


def test_a_text_line_has_the_fields_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("text")
    get_logger().warning("slow", status=200)
    [line] = lines_of(capsys)
    assert "[warning  ] slow" in line and line.endswith("status=200")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "code": "unauthorized",
            "param": None,
            "status": 401,
            "total_ms": 0.2,
            "endpoint": "/v1/completions",
        },
        {
            "a": "",
            "b": "two words",
            "c": "it's",
            "d": 'say "x"',
            "e": "a=b",
            "f": "tab\t",
            "g": "計算",
            "h": " ",
        },
        {"paths": ["a", "b"], "outcome": FinishReason.STOP, "error": ValueError("why")},
        {"logger": "library", "status": 1},
        {"exc_info": ValueError("why"), "status": 1},
    ],
)
@pytest.mark.parametrize("event", ["request", "", "a line that is longer than what is padded to thirty"])
def test_a_text_line_is_what_the_console_renderer_writes(
    event: str, fields: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("text")
    get_logger().warning(event, **fields)
    [line, *rest] = lines_of(capsys)
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    shown = {"timestamp": line.split(" ")[0], "level": "warning", "event": event, **fields}
    assert [line, *rest] == renderer(None, "warning", shown).splitlines()


def test_an_exception_is_in_the_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json")
    get_logger().error("failed", exc_info=ValueError("why"))
    [line] = lines_of(capsys)
    assert "ValueError: why" in json.loads(line)["exception"]


def test_what_libraries_log_has_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json")
    logging.getLogger("some.library").warning("beware of %s", "it")
    [line] = lines_of(capsys)
    found = json.loads(line)
    assert (found["event"], found["level"]) == ("beware of it", "warning")


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("text", "warning")
    get_logger().info("unseen")
    logging.getLogger("uvicorn").info("unseen")
    assert lines_of(capsys) == []


def test_a_closed_standard_error_loses_the_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logs("text")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    get_logger().info("lost")
    with pytest.raises(ValueError, match="closed"):
        closed.write("it is closed")


def fail_with(secret: str) -> None:
    headers = {"authorization": secret}
    raise ValueError(f"{len(headers)} thing went wrong")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_trace_shows_no_values_of_variables(
    form: Literal["text", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form)
    try:
        fail_with("s3cr" + "et-key")
    except ValueError as error:
        get_logger().error("failed", exc_info=error)
        logging.getLogger("some.library").exception("failed, too")
    text = capsys.readouterr().err
    assert text.count("1 thing went wrong") == 2 and "fail_with" in text
    assert "s3cret-key" not in text


# ---- a standard error that nobody reads -----------------------------------------------------------------


@contextmanager
def unread_pipe() -> Iterator[int]:
    """Standard error is a pipe whose reading end this is."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield reading
    os.close(reading)


def read_all(reading: int) -> list[str]:
    os.set_blocking(reading, False)
    pieces = []
    try:
        while piece := os.read(reading, 1 << 16):
            pieces.append(piece)
    except BlockingIOError:
        pass  # empty for now
    return b"".join(pieces).decode().splitlines()


def test_lines_that_nobody_reads_block_nobody_and_come_later_in_order() -> None:
    written = [f"{i:06d} " + "x" * 300 for i in range(1000)]
    with unread_pipe() as pipe:
        out = StandardError()
        for line in written:
            out.msg(line)
        found = read_all(pipe)
        num_at_once = len(found)
        for _ in range(10):
            out.msg("later")
            found += read_all(pipe)
    assert 0 < num_at_once < 1000
    assert [line for line in found if line != "later"] == written


def test_how_many_lines_were_lost_is_said_when_somebody_reads_again() -> None:
    with unread_pipe() as pipe:
        out = StandardError(max_waiting_bytes=1000)
        for _ in range(1000):
            out.msg("x" * 299)
        found = read_all(pipe)
        out.msg("again")
        found += read_all(pipe)
    [said] = [line for line in found if "lost" in line]
    lost = 1001 - (len(found) - 1)
    assert lost > 500
    assert said == f"{lost} log lines were lost: standard error was not read"


def test_a_line_longer_than_a_pipe_takes_at_once_stays_whole() -> None:
    with unread_pipe() as pipe:
        out = StandardError()
        out.msg("y" * 50_000)
        out.msg("after")
        found = read_all(pipe)
    assert found == ["y" * 50_000, "after"]


def test_lines_that_could_not_be_written_are_written_when_that_is_possible_again() -> None:
    with unread_pipe() as pipe:
        out = StandardError(max_waiting_bytes=10_000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", _no_space)
            for place in range(5):
                out.msg(f"line {place}")
        out.msg("line 5")
        assert read_all(pipe) == [f"line {place}" for place in range(6)]
    assert out._num_waiting_bytes == 0


def _no_space(descriptor: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "no space")


def test_a_handler_of_a_signal_may_log_while_a_line_is_written() -> None:
    with unread_pipe() as pipe:
        out = StandardError()
        write = os.write

        def interrupted(descriptor: int, data: bytes) -> int:
            patch.setattr(os, "write", write)
            out.msg("from the handler")
            return write(descriptor, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", interrupted)
            out.msg("first")
        assert read_all(pipe) == ["first", "from the handler"]
