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
