"""The commands of docs/training.md are ones that exist, and their data can be read; no model is trained.

The slow half, which runs them all, is tests/soak/test_training_page_whole.py.
"""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from model_store.cli import app as model_app
from model_store.task_files import load_tasks
from model_store.training.cli import app as training_app
from model_store.training.task_rows import TaskRow, mapped, read_task_rows, task_source
from model_store.training.text_files import expand
from service.commands.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("textgen model")
]
EXAMPLES = ("mood", "french", "support", "tldr", "advice")


def options(words: list[str]) -> dict[str, Any]:
    """Read a command as the program would. Raises click's errors for what it does not take."""
    measuring = typer.Typer()
    measuring.command()(evaluate)
    apps = (model_app, training_app, measuring)
    commands = {name: made for app in apps for name, made in typer.main.get_group(app).commands.items()}
    params: dict[str, Any] = commands[words[2]].make_context(words[2], list(words[3:])).params
    return params


def command(name: str, task: str) -> list[str]:
    return next(words for words in COMMANDS if words[2] == name and any(f"{task}=" in word for word in words))


def rows(words: list[str], task: str) -> list[TaskRow]:
    data = next(value for flag, value in itertools.pairwise(words) if flag == "--data")
    maps = [value for flag, value in itertools.pairwise(words) if flag == "--map"]
    tasks = load_tasks(ROOT / "docs" / "examples" / "tasks.toml")
    source = task_source(data, "--data")
    [source] = mapped([source], maps, tasks)
    return read_task_rows(source, tasks[task], list(expand([ROOT / source.path], True)))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[2:4])[:40])
def test_each_command_of_the_page_is_one_that_exists(words: list[str]) -> None:
    assert options(words)


@pytest.mark.parametrize("task", EXAMPLES)
def test_the_data_of_an_example_can_be_read_and_its_test_set_is_unseen(task: str) -> None:
    seen, unseen = (rows(command(name, task), task) for name in ("finetune", "evaluate"))
    assert 150 <= len(seen) <= 1000 and len(unseen) >= 50
    known = {tuple(row.fields.values()) for row in seen}
    shared = [row.origin for row in unseen if tuple(row.fields.values()) in known]
    assert len(shared) <= len(unseen) // 20, shared


@pytest.mark.parametrize("task", EXAMPLES)
def test_an_example_is_shown_from_preview_to_one_question(task: str) -> None:
    section = next(part for part in PAGE.split("\n## ") if f"--data {task}=" in part)
    for step in (
        "textgen model preview",
        "textgen model finetune",
        f"--name {task} --activate",
        "textgen model evaluate",
        f"TEXTGEN_MODEL={task} textgen serve",
        f"/tasks/{task}",
    ):
        assert step in section, step


def test_each_file_of_the_examples_has_its_source_and_licence() -> None:
    told = (ROOT / "docs" / "examples" / "README.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in (ROOT / "docs" / "examples").iterdir() if path.name != "README.md")
    assert [name for name in files if f"`{name}`" not in told] == []
