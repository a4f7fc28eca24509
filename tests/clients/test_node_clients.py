"""Node's clients, unchanged; skipped where there is no Node or its packages were not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import MODEL

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")
@pytest.mark.skipif(not (HERE / "node_modules").is_dir(), reason="run `npm ci` in tests/clients")
def test_every_client_of_node_gets_its_text(url: str) -> None:
    done = subprocess.run(
        ["node", "clients.mjs", url, MODEL],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 10 and all(found.values()), found
    assert {found["aiObject"], found["langChainObject"]} <= {'{"ok":true}', '{"ok":false}'}
    assert found["openaiStream"] == found["openaiChat"]
