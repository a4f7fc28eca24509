"""The cells of `docs/python.md` print what stands there. REWRITE=1 puts in what they print now.

In float32, as `test_documents` says.
"""

from __future__ import annotations

import os
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
CELL = re.compile(r"```python\n(?P<code>.*?)```\n(\n```text\n(?P<shown>.*?)```\n)?", re.DOTALL)


def run_cells(page: str) -> str:
    """The page with what its cells print now; they share their names, as in a notebook."""
    names: dict[str, Any] = {}

    def run(cell: re.Match[str]) -> str:
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(cell["code"], "docs/python.md", "exec"), names)
        output = printed.getvalue()
        shown = f"\n```text\n{output.removesuffix(chr(10))}\n```\n" if output else ""
        return f"```python\n{cell['code']}```\n{shown}"

    return CELL.sub(run, page)


def test_the_cells_print_what_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PAGE.parents[1])
    monkeypatch.setenv("TEXTGEN_PRECISION", "float32")
    page = PAGE.read_text(encoding="utf-8")
    now = run_cells(page)
    if "REWRITE" in os.environ:
        PAGE.write_text(now, encoding="utf-8")
    assert now.count("```python") >= 10
    assert now == page
