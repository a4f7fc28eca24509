"""schemathesis over the OpenAPI description: no 500, no answer that is not documented (504 is: a deadline).

Left out where schemathesis is not installed, as under `make soak VENV=`; `make install-dev` installs it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from service.bench.chaos import ChaosOptions
from service.bench.chaos.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
_COMMAND = "from schemathesis.cli import schemathesis; schemathesis()"  # its script may not be on the path
_CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance"


async def _fuzz(model: Path, folder: Path) -> tuple[int, str, str]:
    settings = {"MAX_JOB_SEQUENCES": "16", "REQUEST_TIMEOUT_S": "10"}
    async with Server(ChaosOptions(str(model), log_dir=folder), settings, "fuzz") as server:
        options = ["--checks", _CHECKS, "--max-examples", "40", "--workers", "1"]
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _COMMAND, "run", f"{server.url}/openapi.json", *options],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        return done.returncode, done.stdout, server.log_faults()


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_no_generated_request_breaks_the_description(
    storm_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTGEN_THREADS", "1")
    code, output, fault = asyncio.run(_fuzz(storm_model, tmp_path))
    assert (code, fault) == (0, ""), output[-6000:]
