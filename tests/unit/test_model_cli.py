"""The commands of `textgen model`: lines, exit codes, and errors without a traceback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from small_store import flip_byte, make_store
from store_models import write_checkpoint
from typer.testing import CliRunner, Result

from model_store.cli import app as store_commands
from model_store.store import Store
from service.cli import ModelCommands

app = typer.Typer()
app.add_typer(store_commands, name="model", cls=ModelCommands)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["model", *map(str, arguments)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a store with two versions of `story`; the first is active."""
    return make_store(tmp_path / "store").root


def test_list_marks_the_active_version(root: Path) -> None:
    lines = run("list", "--store", root).stdout.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["story@1", "active"], ["story@2"]]


def test_list_as_json_gives_paths(root: Path) -> None:
    first = json.loads(run("list", "--json", "--store", root).stdout)[0]
    assert (first["name"], first["path"]) == ("story", str(root / "story" / "1"))


def test_show_as_json_gives_the_manifest(root: Path) -> None:
    assert json.loads(run("show", "story", "--json", "--store", root).stdout)["version"] == "1"


def test_show_says_on_standard_error_that_another_version_took_the_place(root: Path) -> None:
    Store(root, builtin=None).activate("story@2", lambda entry: None)
    flip_byte(root / "story" / "2" / "weights.bin")
    result = run("show", "story", "--store", root)
    assert "story@1" in result.stdout and "differs from its checksum" in result.stderr


def test_an_unknown_name_is_one_line_and_exit_code_two(root: Path) -> None:
    result = run("show", "storry", "--store", root)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1) and "did you mean story" in result.stderr


def test_verify_names_the_corrupt_version_and_fails(root: Path) -> None:
    flip_byte(root / "story" / "2" / "weights.bin")
    result = run("verify", "--store", root)
    assert result.exit_code == 1 and "story@2" in result.stderr and "story@1: whole" in result.stdout


def test_verify_of_a_whole_store_succeeds(root: Path) -> None:
    assert run("verify", "story@1", "--store", root).exit_code == 0


def test_remove_refuses_the_active_version(root: Path) -> None:
    assert "is active" in run("remove", "story@1", "--store", root).stderr


def test_remove_with_force_takes_the_active_version(root: Path) -> None:
    assert run("remove", "story@1", "--force", "--store", root).stdout == "removed story@1\n"


def test_import_with_activate_adds_checks_and_activates(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny")
    result = run("import", checkpoint, "--activate", "--license", "MIT", "--store", tmp_path / "store")
    assert result.stdout.splitlines()[-1] == "tiny@1 is active"


def test_import_names_the_wrong_key_of_a_task_file(tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text('[[tasks]]\nname = "a"\nkind = "generate"\n')
    checkpoint = write_checkpoint(tmp_path / "tiny")
    result = run("import", checkpoint, "--tasks", tmp_path / "tasks.toml", "--store", tmp_path / "store")
    assert result.stderr == "error: tasks.toml: tasks[0].template: is missing\n"


def test_the_training_commands_stand_beside_those_of_the_store() -> None:
    assert {"list", "activate", "pretrain", "evaluate"} <= set(run("--help").stdout.split())


def test_a_training_command_is_found_by_its_name() -> None:
    assert "--learning-rate" in run("finetune", "--help").stdout


def test_an_unknown_command_is_refused() -> None:
    assert run("fintune").exit_code == 2


def test_the_environment_names_the_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_STORE", str(root))
    assert "story@1" in run("list").stdout


@pytest.mark.parametrize(("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5")])
def test_threads_that_train_do_not_spin_for_long_while_they_wait(given: dict[str, str], found: str) -> None:
    command = [sys.executable, "-m", "service.cli", "model", "finetune", "--help"]
    environment = {**os.environ, "OMP_DISPLAY_ENV": "verbose", **given}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", shown) == [found], shown
