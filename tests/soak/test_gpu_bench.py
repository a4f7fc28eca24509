"""The GPU bench as one command, on the processor with a tiny model: it runs to its end and gives figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.mark.slow
def test_the_dry_run_ends_with_json_that_names_what_was_left_out() -> None:
    command = [sys.executable, str(SCRIPT), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tiny"]["correct"]["float32"]["passed"] and "textgen bench" in found["http"]
