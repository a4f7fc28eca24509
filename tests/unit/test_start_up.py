"""The start is told step by step: a log line for each, and on a terminal a bar that goes away."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_logs import usual_logs_afterwards

from service.logs import configure_logs, get_logger, show_below
from service.start_up import StartUp, uncollected

__all__ = ["usual_logs_afterwards"]


@contextmanager
def terminal() -> Iterator[int]:
    """A terminal as standard error, within a test; gives the descriptor that a person would look at."""
    person, program = pty.openpty()
    with os.fdopen(program, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logs("text")
        yield person
    configure_logs("text")  # no terminal any more
    os.close(person)


def seen(person: int) -> str:
    """All that was written; a terminal gives it in pieces."""
    os.write(sys.stderr.fileno(), b"<end>")
    found = b""
    while not found.endswith(b"<end>"):
        found += os.read(person, 65536)
    return found.removesuffix(b"<end>").decode()


def test_each_step_is_a_log_line_with_its_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json")
    start_up = StartUp(2)
    with start_up.step("reading the weights (14 MB)"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["event"] == "reading the weights (14 MB)" and 0 <= entry["seconds"] < 60


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("text")
    with StartUp(2).step("importing"):
        assert show_below("x") is False
    assert "░" not in capsys.readouterr().err and "\r" not in capsys.readouterr().err


def test_json_lines_on_a_terminal_stay_json() -> None:
    with terminal():
        configure_logs("json")
        assert show_below("x") is False


def test_a_terminal_shows_a_bar_that_grows_and_goes_away() -> None:
    with terminal() as person:
        start_up = StartUp(2)
        with start_up.step("importing"):
            pass
        with start_up.step("warming up"):
            pass
        text = seen(person)
    bars = [bar.count("█") for bar in re.findall(r"[█░]{20}", text)]
    assert bars[0] == 0 and bars[-1] == 10
    assert text.endswith("\n") and "importing" in text and "warming up" in text


def test_a_log_line_comes_above_what_is_going_on() -> None:
    with terminal() as person:
        show_below("going on")
        get_logger().info("a line")
        show_below("")
        shown = re.sub(r"\x1b\[[0-9;]*m", "", seen(person))
    assert re.search(r"going on\r\x1b\[2K\S+ \[info +\] a line +\r?\ngoing on\r\x1b\[2K$", shown)


def test_a_step_that_fails_is_not_told_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json")
    with pytest.raises(ValueError, match="broken"), StartUp(1).step("importing"):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""


def test_what_is_going_on_fits_the_terminals_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    with terminal() as person:
        show_below("x" * 100)
        assert seen(person).count("x") == 29


def test_a_folder_with_kernels_is_no_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.engine.backends.cpu import cache

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new"))
    assert not cache.has_kernels()
    assert cache.keep([b"code"]) == ""
    assert cache.has_kernels()


def test_no_garbage_is_looked_for_inside_and_again_afterwards() -> None:
    with uncollected():
        made: list[object] = []
        made.append(made)
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    assert not any(each is made for each in gc.get_objects()), "it is searched again"
    gc.unfreeze()
