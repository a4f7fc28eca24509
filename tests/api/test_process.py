"""`textgen serve` as a process: start, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import COLD_START_S, WAIT_S, events, expect, running

from service.errors import SettingsError
from service.server import open_listeners
from service.settings import Settings

LONG = {"prompt": "go on", "max_new_tokens": 240, "ignore_eos": True, "stream": True}

TELL_HEAVY = """
import atexit, sys
atexit.register(lambda: print("heavy:", sorted({"torch", "transformers", "fastapi"} & sys.modules.keys())))
"""

# The signal comes when the start calls this function, which then never returns.
INTERRUPTED = """
import os, signal, threading
import {module} as module

def interrupted(*args, **options):
    os.kill(os.getpid(), signal.{signal_name})
    threading.Event().wait()

module.{function} = interrupted
"""

# The application is made only once the engine has been built.
WAITS_FOR_THE_ENGINE = """
from service import server

make_server = server.make_server

def make_later(settings, opening):
    opening.opened().engine._built.result(%d)
    print("built", flush=True)
    return make_server(settings, opening)

server.make_server = make_later
"""


def command(*args: str, **settings: str) -> subprocess.Popen[str]:
    return python(["-m", "service.cli", *args], **settings)


def main_after(code: str, *args: str) -> subprocess.Popen[str]:
    """`textgen ARGS` in a process that runs some code before."""
    return python(["-c", f"{code}\nfrom service.cli import main\nmain()", *args])


def python(args: list[str], **settings: str) -> subprocess.Popen[str]:
    env = {**os.environ, **{f"TEXTGEN_{name}": value for name, value in settings.items()}}
    return subprocess.Popen(
        [sys.executable, *args],
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def service(model: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[str], str, list[Any]]]:
    """A ready service as a process, its address, and what it has logged."""
    process = command("serve", "--port", "0", MODEL=str(model), LOG_FORMAT="json", **settings)
    assert process.stderr is not None
    try:
        log: list[Any] = []
        while not log or log[-1]["event"] != "ready":
            log.append(json.loads(process.stderr.readline()))
        (address,) = (entry["address"] for entry in log if "address" in entry)
        yield process, address, log
    finally:
        process.kill()
        process.communicate()


def test_a_start_tells_its_steps_and_a_curl_to_paste(tiny_model: Path) -> None:
    with service(tiny_model) as (process, address, log):
        assert process.stderr is not None
        invitation = json.loads(process.stderr.readline())["event"]
        curl = invitation.partition("paste: ")[2]
        output = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    steps = [entry["event"] for entry in log if "seconds" in entry]
    assert steps[0] == "importing" and steps[-2:] == ["warming up", "ready"]
    assert any(step.startswith("reading the weights (") for step in steps)
    assert invitation.startswith(f"open {address} in a browser")
    assert events(output)[-1][0] == "done"


def test_the_engine_loads_while_the_application_is_imported(tiny_model: Path) -> None:
    code = WAITS_FOR_THE_ENGINE % COLD_START_S
    process = main_after(code, "serve", "--port", "0", "--model", str(tiny_model), "--log-format", "json")
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stdout.readline() == "built\n"
        told: list[str] = []
        while "ready" not in told:
            told.append(json.loads(process.stderr.readline())["event"])
        assert told.index("warming up") < told.index("listening") < told.index("ready")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("host", "keys", "is_warned"),
    [("0.0.0.0", "", True), ("0.0.0.0", "abc", False), ("127.0.0.1", "", False)],
)
def test_a_service_that_anybody_may_use_says_so(
    tiny_model: Path, host: str, keys: str, is_warned: bool
) -> None:
    with service(tiny_model, HOST=host, API_KEYS=keys) as (_, _, log):
        assert any("no API keys" in entry["event"] for entry in log) == is_warned


def answers(http: httpx.Client, path: str) -> bool:
    """Whether a service that may not listen yet says 200."""
    try:
        return http.get(path).status_code == 200
    except httpx.TransportError:
        return False


def test_the_first_sigterm_lets_streams_finish_refuses_newcomers_and_exits_0(tiny_model: Path) -> None:
    with service(tiny_model) as (process, address, _), httpx.Client(base_url=address, timeout=WAIT_S) as http:
        with http.stream("POST", "/generate", json={**LONG, "n": 8}) as response:
            process.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=address, timeout=WAIT_S) as other:
                expect(lambda: other.get("/readyz").status_code == 503, "the drain")
                refused = other.post("/generate", json={"prompt": "a"})
            found = events(response.read().decode())
        code = process.wait(WAIT_S)
    assert (found[-1][0], refused.status_code, code) == ("done", 503, 0)


def test_a_second_sigterm_ends_streams_with_an_error_frame_and_exits_0(tiny_model: Path) -> None:
    with service(tiny_model) as (process, address, _), httpx.Client(base_url=address, timeout=WAIT_S) as http:
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


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["serve", "--help"], ["model", "list"], ["bench", "--help"]]
)
def test_a_command_that_needs_no_model_imports_nothing_heavy(args: list[str]) -> None:
    output, _ = main_after(TELL_HEAVY, *args).communicate(timeout=WAIT_S)
    assert output.endswith("heavy: []\n")


def test_a_port_in_use_stops_the_start_with_one_line_before_anything_heavy_is_imported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = main_after(TELL_HEAVY, "serve", "--port", port)
        output, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, output) == (2, "heavy: []\n")
    assert (
        errors
        == f"textgen: TEXTGEN_PORT: port {port} is in use; stop what listens there, or choose another one\n"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no..name", "http://127.0.0.1"])
def test_a_host_that_is_not_here_is_refused_by_name(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^TEXTGEN_HOST .* legal is"):
        open_listeners(host, 0)


def test_all_addresses_of_a_host_get_the_same_port() -> None:
    listeners = open_listeners("localhost", 0)
    ports = {listener.getsockname()[1] for listener in listeners}
    for listener in listeners:
        listener.close()
    assert len(ports) == 1


@pytest.mark.parametrize(
    ("signal_name", "place"),
    [
        ("SIGTERM", "service.settings.load_settings"),
        ("SIGINT", "service.server.make_server"),
        ("SIGTERM", "service.engine_setup.make_engine"),  # in a worker thread, behind the open listener
        ("SIGINT", "service.engine.loader.build_engine"),  # in the engine's thread
    ],
)
def test_a_signal_during_the_start_ends_it_with_0_and_a_line(
    tiny_model: Path, signal_name: str, place: str
) -> None:
    module, function = place.rsplit(".", 1)
    code = INTERRUPTED.format(module=module, function=function, signal_name=signal_name)
    process = main_after(code, "serve", "--port", "0", "--model", str(tiny_model))
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0 and signal_name in errors and "Traceback" not in errors


def test_a_cache_that_does_not_fit_the_memory_stops_the_start_with_one_line(tiny_model: Path) -> None:
    process = command("serve", "--port", "0", MODEL=str(tiny_model), KV_CACHE_BYTES="999999G")
    _, errors = process.communicate(timeout=COLD_START_S)
    assert process.returncode == 2 and "Traceback" not in errors
    assert (
        "TEXTGEN_KV_CACHE_BYTES is more than the memory that is free; legal here" in errors.splitlines()[-1]
    )


def test_a_process_whose_standard_streams_are_closed_serves(tiny_model: Path) -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    port = str(listener.getsockname()[1])
    listener.close()
    serve = [sys.executable, "-m", "service.cli", "serve", "--port", port, "--model", str(tiny_model)]
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *serve])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as http:
            expect(lambda: process.poll() is not None or answers(http, "/readyz"), "ready", COLD_START_S)
            answer = http.post("/generate", json={"prompt": "go on", "max_new_tokens": 4})
        process.send_signal(signal.SIGTERM)
        assert (answer.status_code, process.wait(WAIT_S)) == (200, 0)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("limit", "is_told"), [(256 << 20, True), (512 << 20, False), (None, False)])
def test_a_limit_of_memory_that_no_model_fits_is_told_before_the_load(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str], limit: int | None, is_told: bool
) -> None:
    monkeypatch.setattr("service.engine_setup.memory_limit_bytes", lambda: limit)
    start = len(log_lines)
    with running(Settings(model=str(tiny_model), port=0, threads=1)):
        told = [line for line in log_lines[start:] if "memory is limited to 256 MiB" in line]
    assert bool(told) == is_told


def test_sighup_reads_the_key_file_again_and_ends_nothing(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    with (
        service(tiny_model, API_KEYS_FILE=str(keys)) as (process, address, _),
        httpx.Client(base_url=address, timeout=WAIT_S) as http,
    ):
        keys.write_text("new\n")
        process.send_signal(signal.SIGHUP)
        body = {"prompt": "go on", "max_new_tokens": 1}

        def is_served() -> bool:
            return (
                http.post("/generate", json=body, headers={"authorization": "Bearer new"}).status_code == 200
            )

        expect(is_served, "the new key")
        assert process.poll() is None
