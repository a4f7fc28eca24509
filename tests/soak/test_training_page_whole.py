"""docs/training.md is lived through: its commands in their order, in an empty store, as a person types them.

REWRITE=1 puts what they print into the page. The fast half, which reads the same commands and data without
training, is tests/unit/test_training_page.py.
"""

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
from live_service import expect

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training.md"
BLOCK = re.compile(r"```bash\n(?P<code>.*?)```\n(\n```\n(?P<shown>.*?)```\n)?", re.DOTALL)
SECTION = re.compile(r"^## (?P<title>.*)\n(?P<body>(?:(?!^## ).*\n)*)", re.MULTILINE)
COMMAND = f"{sys.executable} -m service.cli "
MAIN_FIGURES = {  # of a test set, and the baseline beside it
    "choice": ("accuracy", "majority_accuracy"),
    "generate": ("chrf", "copy_chrf"),
    "summarize": ("rougeL", "lead2_rougeL"),
}
TASKS = {
    "mood": "choice",
    "french": "generate",
    "support": "generate",
    "tldr": "summarize",
    "advice": "generate",
}


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TEXTGEN_STORE": str(folder / "store"),
        "TEXTGEN_PORT": "0",
        "COLUMNS": "120",
    }


def in_bash(code: str, folder: Path, url: str) -> str:
    code = code.replace("http://127.0.0.1:8000", url)
    code = re.sub(r"(^|\n)textgen ", rf"\1{COMMAND}", code)
    done = subprocess.run(
        ["bash", "-ec", code],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}"
    return shortened(done.stdout.replace(str(folder / "store"), "~/.local/share/textgen"))


def shortened(output: str) -> str:
    """What was printed, with but the first three and the last three lines of a curve and its samples."""
    lines = output.splitlines()
    inner = [number for number, line in enumerate(lines) if line.startswith(("step ", "sample at "))]
    if len(inner) > 6:
        lines[inner[3] : inner[-3]] = ["…"]
    return "\n".join(lines)


@contextmanager
def served(line: str, folder: Path) -> Iterator[str]:
    """Start what a page's line `TEXTGEN_MODEL=mood textgen serve` starts, and give its address."""
    name = re.match(r"TEXTGEN_MODEL=(\S+) textgen serve\n", line)
    assert name, line
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*COMMAND.split(), "serve"],
            cwd=folder,
            env={**environment(folder), "TEXTGEN_MODEL": name[1]},
            stdout=output,
            stderr=output,
        )
    try:
        found: list[str] = []

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            found[:] = re.findall(r"http://127\.0\.0\.1:[1-9]\d+", log.read_text())
            return bool(found) and is_ready(found[0])

        expect(is_up, "the service", 300)
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def lived(body: str, folder: Path) -> str:
    """Run a section's blocks, and give it back with what they printed."""
    serving = ""

    def now(block: re.Match[str]) -> str:
        nonlocal serving
        if "textgen serve" in block["code"]:
            serving = block["code"]
            return block[0]
        if serving:
            with served(serving, folder) as url:
                output = in_bash(block["code"], folder, url)
        else:
            output = in_bash(block["code"], folder, "")
        return f"```bash\n{block['code']}```\n" + (
            f"\n```\n{output.strip()}\n```\n" if block["shown"] is not None else ""
        )

    return BLOCK.sub(now, body)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("task", TASKS)
def test_an_evening_ends_with_a_model_that_beats_the_trivial_baseline(tmp_path: Path, task: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = next(found for found in SECTION.finditer(page) if f"--data {task}=" in found["body"])
    (tmp_path / "docs").symlink_to(ROOT / "docs")

    fresh = lived(section["body"], tmp_path)

    if "REWRITE" in os.environ:
        page = PAGE.read_text(encoding="utf-8")  # somebody may have written meanwhile
        PAGE.write_text(page.replace(section["body"], fresh), encoding="utf-8")
    assert fresh.count("```bash") == 5
    recorded = json.loads((tmp_path / "store" / task / "figures" / "1.json").read_text(encoding="utf-8"))
    figures = next(value for key, value in walked(recorded) if key.startswith(f"{task}: "))
    main, baseline = MAIN_FIGURES[TASKS[task]]
    assert figures[main] > figures[baseline], figures


def walked(value: object) -> Iterator[tuple[str, dict[str, float]]]:
    """All tables in a JSON value, with their keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict):
                yield key, inner
                yield from walked(inner)
