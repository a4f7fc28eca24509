"""What README, docs/api.md and docs/commands.md show is what happens. REWRITE=1 puts in what happens.

Commands run against the built-in model, in float32: bfloat16, the default, rounds as the processor's
instructions do, and a sampled text goes another way from there. Ids, drawn seeds, times and which tokens
share a frame differ from run to run, the last digits of scores from processor to processor; they are not
compared.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_service import Live, running

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "docs/api.md", "docs/commands.md"]
BLOCK = re.compile(r"```(?P<kind>bash|python)\n(?P<code>.*?)```\n(\n```\n(?P<shown>.*?)```\n)?", re.DOTALL)
NOT_HERE = (
    "make ",
    "docker ",
    "path/to/",
    "requests.jsonl",
    "pdftotext ",
)  # they install, or need files of yours
DIFFERS = [
    (re.compile(r'"(id|request_id)":"([a-z]+-)?[0-9a-f]+"'), r'"\1":"…"'),
    (re.compile(r'"([a-z]+_ms)":[0-9.]+'), r'"\1":0'),
    (re.compile(r'"(score|logprob)":-?[0-9.]+'), r'"\1":0'),
    (re.compile(r'"cached_tokens":\d+'), '"cached_tokens":0'),
    (re.compile(r'"created":\d+'), '"created":0'),
    (re.compile(r'"seed":\d{9,}'), '"seed":0'),
]


@pytest.fixture(scope="module")
def service() -> Iterator[Live]:
    with running(Settings(port=0, threads=2, precision="float32")) as live:
        yield live


TOKEN = re.compile(r'event: token\ndata: {"index":0,"text":"(.*)"}\n\n')


def comparable(output: str) -> str:
    output = TOKEN.sub(r"\1", output)
    for pattern, instead in DIFFERS:
        output = pattern.sub(instead, output)
    return output.strip()


def run(kind: str, code: str, url: str, folder: Path) -> str:
    """What a block prints, with the service at another address and this interpreter's commands."""
    code = code.replace("http://127.0.0.1:8000", url)
    code = re.sub(r"(^|\| )(\.venv/bin/)?textgen ", rf"\1{sys.executable} -m service.cli ", code, flags=re.M)
    command = ["bash", "-ec", code] if kind == "bash" else [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TEXTGEN_PRECISION": "float32"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_shows_is_what_happens(service: Live, tmp_path: Path, name: str) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "report.txt").write_bytes((ROOT / "docs" / "harbour.txt").read_bytes())
    page = (ROOT / name).read_text(encoding="utf-8")
    num_run = 0

    def now(block: re.Match[str]) -> str:
        nonlocal num_run
        if block["kind"] == "bash" and any(word in block["code"] for word in NOT_HERE):
            return block[0]
        output = run(block["kind"], block["code"], service.url, tmp_path)
        num_run += 1
        if block["shown"] is None or comparable(output) == comparable(block["shown"]):
            return block[0]
        return f"```{block['kind']}\n{block['code']}```\n\n```\n{output.rstrip()}\n```\n"

    fresh = BLOCK.sub(now, page)
    if "REWRITE" in os.environ:
        (ROOT / name).write_text(fresh, encoding="utf-8")
    assert num_run >= 1
    assert fresh == page


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_every_file_that_a_document_links_to_is_there(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
