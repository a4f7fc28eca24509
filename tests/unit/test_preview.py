"""`preview` and `--dry-run`: what is shown is what a run would do; cards and licences of what was trained."""

import json
import re
from pathlib import Path

import pytest
import torch
from store_models import write_checkpoint
from typer.testing import CliRunner, Result

from model_store.manifest import read_json_manifest
from model_store.training.cli import app

TASKS = {
    "name": "mood",
    "kind": "choice",
    "template": "{text}\nMood:",
    "document": "text",
    "labels": ["good", "bad"],
}
OPTIONS = ("--block", "32", "--batch-rows", "2", "--precision", "fp32", "--valid-share", "0")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(tmp_path: Path, base: Path, command: str, *more: str) -> Result:
    (tmp_path / "tasks.json").write_text(json.dumps(TASKS), encoding="utf-8")
    rows = [f'"{word}";{label}' for word, label in (("ab; c", "good"), ("x" * 60, "bad"), ("hm", "good")) * 4]
    (tmp_path / "a.csv").write_text("\n".join(["body;stars", *rows]), encoding="utf-8")
    arguments = ["--model", f"{base}/", "--tasks", str(tmp_path / "tasks.json"), *OPTIONS]
    data = ["--data", f"mood={tmp_path / 'a.csv'}", "--map", "text=body,label=stars"]
    return CliRunner().invoke(app, [command, *arguments, *data, *more], env={"COLUMNS": "160"})


def test_a_preview_shows_prompts_lengths_labels_and_what_lies_ahead(tmp_path: Path, base: Path) -> None:
    result = run(tmp_path, base, "preview", "--epochs", "3")
    assert result.exit_code == 0, result.output
    assert "Mood:⟦ good" in result.stdout and "a.csv (; between cells, utf-8): 12 examples" in result.stderr
    assert re.search(r"good\s+8\s+66.7 %", result.stdout), result.stdout
    assert re.search(r"mood\s+12\s+14 ", result.stdout) and "left out" in result.stdout, result.stdout
    rows = int(re.search(r"ahead: (\d+) rows of 32 tokens", result.stdout)[1])  # type: ignore[index]
    steps = int(re.search(r"ahead: (\d+) steps", result.stdout)[1])  # type: ignore[index]
    assert steps == 3 * (rows // 2) > 0
    assert re.search(
        r"ahead: \d+ steps of [\d.]+ s, 0 validations of 0.00 s and \d+ samples of", result.stdout
    )
    assert re.search(r"ahead: before them the base writes 7,872 tokens of old work: about ", result.stdout)
    assert "ahead: measuring old work, before and after: about" in result.stdout
    assert "ahead: in all about" in result.stdout and "GB of memory" in result.stdout


def test_old_work_that_is_given_is_read_and_measured_not_written(tmp_path: Path, base: Path) -> None:
    old = tmp_path / "old.txt"
    old.write_text("Tom has a stone. " * 40, encoding="utf-8")
    shown = run(tmp_path, base, "preview", "--replay", "0.3", "--replay-data", str(old)).stdout
    assert "ahead: measuring old work" in shown and "the base writes" not in shown
    old.write_bytes(b"\xff\xfe\xff")
    refused = run(tmp_path, base, "preview", "--replay", "0.3", "--replay-data", str(old))
    assert refused.exit_code == 2 and refused.stderr.count("old.txt") == 1, refused.stderr


def test_validations_are_counted_and_timed(tmp_path: Path, base: Path) -> None:
    shown = run(tmp_path, base, "preview", "--valid-share", "0.5", "--epochs", "4").stdout
    steps, validations = map(
        int,
        re.search(r"ahead: (\d+) steps of .*, (\d+) validations", shown).groups(),  # type: ignore
    )
    assert 0 < validations <= steps


def test_a_cut_is_counted_and_its_end_is_what_is_shown(tmp_path: Path, base: Path) -> None:
    result = run(tmp_path, base, "preview")
    cells = next(line for line in result.stdout.splitlines() if line.startswith("  mood")).split()
    assert cells[-2:] == ["4", "0"]
    assert "xxxx\nMood:⟦ bad" in result.stdout and "x" * 60 not in result.stdout


def test_a_dry_run_shows_the_same_and_trains_nothing(tmp_path: Path, base: Path) -> None:
    result = run(tmp_path, base, "finetune", "--dry-run", "--out", str(tmp_path / "run"))
    assert "ahead: " in result.stdout and not (tmp_path / "run").exists()


def test_what_a_run_would_refuse_a_preview_refuses(tmp_path: Path, base: Path) -> None:
    twice = run(tmp_path, base, "preview", "--map", "label=body")
    assert twice.exit_code == 2 and "--map: names 'label' of task 'mood' twice" in twice.stderr
    small = run(tmp_path, base, "preview", "--block", "4")
    assert small.exit_code == 2 and "--block: must be from 8 to the model's 64 positions" in small.stderr


def test_a_finetuned_model_has_a_card_and_no_licence_that_nobody_gave(tmp_path: Path, base: Path) -> None:
    result = run(tmp_path, base, "finetune", "--out", str(tmp_path / "mood"), "--log-every", "1")
    assert result.exit_code == 0, result.output
    assert "licence: not given; the base's (not given) is not taken over" in result.stderr
    card = (tmp_path / "mood" / "model" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"a.csv \(task mood\): \d+ bytes, sha256 [0-9a-f]{64}", card)
    assert "# mood" in card and "| step | tokens | loss |" in card and "base model: tiny" in card
    assert read_json_manifest(tmp_path / "mood" / "model")["license"] == ""


def test_a_licence_that_is_given_is_kept(tmp_path: Path, base: Path) -> None:
    result = run(
        tmp_path, base, "finetune", "--out", str(tmp_path / "m"), "--log-every", "1", "--license", "MIT"
    )
    assert result.exit_code == 0 and read_json_manifest(tmp_path / "m" / "model")["license"] == "MIT"
