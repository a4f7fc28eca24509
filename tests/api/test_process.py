"""`textgen serve` as a process: start, signals, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from live_service import WAIT_S, events, expect

LONG = {"prompt": "go on", "max_new_tokens": 240, "ignore_eos": True, "stream": True}


def command(*args: str, **settings: str) -> subprocess.Popen[str]:
    env = {**os.environ, **{f"TEXTGEN_{name}": value for name, value in settings.items()}}
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", *args],
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def service(model: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A ready service as a process, and its address."""
    process = command("serve", "--port", "0", MODEL=str(model), LOG_FORMAT="json", **settings)
    assert process.stderr is not None
    try:
        address = ""
        for line in process.stderr:
            entry = json.loads(line)
            address = entry.get("address", address)
            if entry["event"] == "ready":
                break
        yield process, address
    finally:
        process.kill()
        process.communicate()


def test_the_first_sigterm_lets_streams_finish_refuses_newcomers_and_exits_0(tiny_model: Path) -> None:
    with service(tiny_model) as (process, address), httpx.Client(base_url=address, timeout=WAIT_S) as http:
        with http.stream("POST", "/generate", json={**LONG, "n": 8}) as response:
            process.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=address, timeout=WAIT_S) as other:
                expect(lambda: other.get("/readyz").status_code == 503, "the drain")
                refused = other.post("/generate", json={"prompt": "a"})
            found = events(response.read().decode())
        code = process.wait(WAIT_S)
    assert (found[-1][0], refused.status_code, code) == ("done", 503, 0)


def test_a_second_sigterm_ends_streams_with_an_error_frame_and_exits_0(tiny_model: Path) -> None:
    with service(tiny_model) as (process, address), httpx.Client(base_url=address, timeout=WAIT_S) as http:
        with http.stream("POST", "/generate", json={**LONG, "n": 16}) as response:
            process.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=address, timeout=WAIT_S) as other:
                expect(lambda: other.get("/readyz").status_code == 503, "the drain")
            process.send_signal(signal.SIGTERM)
            found = events(response.read().decode())
        code = process.wait(WAIT_S)
    assert (found[-1][0], found[-1][1]["error"]["code"], code) == ("error", "draining", 0)


def test_wrong_settings_stop_the_start_with_one_line_each() -> None:
    process = command("serve", PORT="eighty", PROT="1")
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert errors.splitlines() == [
        "textgen: TEXTGEN_PROT is not a setting; did you mean TEXTGEN_PORT?",
        "textgen: TEXTGEN_PORT has a value that is not legal; legal is 0 … 65535",
    ]


def test_a_model_that_cannot_be_found_stops_the_start_without_a_trace(tmp_path: Path) -> None:
    process = command("serve", "--port", "0", "--model", "nothing-like-it", STORE=str(tmp_path))
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2 and "nothing-like-it" in errors and "Traceback" not in errors


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["serve", "--help"]])
def test_help_is_quick_because_nothing_heavy_is_imported(args: list[str]) -> None:
    code = "import sys; from service import cli; cli.app.registered_commands; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
    process = command(*args)
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0 and re.search(r"textgen|Serve", output)
