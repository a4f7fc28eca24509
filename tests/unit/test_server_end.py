"""A process that must end does, with the code of its failure, whatever it waits for."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import threading
from service import server
from service.settings import Settings

server.END_S = 1
made = server.make_server(Settings(model="/nowhere", port=0))

async def never(error):
    threading.Event().wait()  # not even the event loop turns

made.life.end_requests = never
made.run(server.open_listeners("127.0.0.1", 0))
"""


def test_a_failed_start_whose_end_hangs_ends_with_its_code() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=50)
    assert done.returncode == 2, done.stderr[-2000:]


FAILING_START = """
from service import engine_setup, server
from service.settings import Settings

class Panic(BaseException):
    "As those of libraries in Rust: no Exception."

def read(path):
    raise {error}

engine_setup.read_checkpoint = read
made = server.make_server(Settings(port=0))
made.run(server.open_listeners("127.0.0.1", 0))
raise SystemExit(made.exit_code)
"""


def said_by_a_start_that_raises(error: str) -> str:
    """What it wrote; its exit code is 1."""
    script = FAILING_START.format(error=error)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done.stderr[-2000:]
    return done.stderr + done.stdout


def test_a_start_that_panics_ends() -> None:
    assert "a library stumbled" in said_by_a_start_that_raises('Panic("a library stumbled")')


def test_a_start_without_memory_says_what_to_do() -> None:
    lines = said_by_a_start_that_raises("MemoryError")
    assert "out of memory at start: " in lines
    assert not [line for line in lines.splitlines() if line.rstrip().endswith("] MemoryError")]
