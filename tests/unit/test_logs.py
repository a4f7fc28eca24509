"""Log lines: their two forms, their levels, and a standard error that cannot be written to."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from service.logs import configure_logs, get_logger


@pytest.fixture(autouse=True)
def usual_logs_afterwards() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


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
