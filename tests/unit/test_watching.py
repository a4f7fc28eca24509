"""Watching a run: speed, time left, sample texts; what is foreseen and said of disks; reports elsewhere."""

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from store_models import write_checkpoint
from toy import toy_job, toy_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner, Result

from model_store.store import Store
from model_store.training.cli import app
from model_store.training.disk import checkpoint_bytes, told_when_full
from model_store.training.errors import DiskFull, InvalidOption
from model_store.training.pipeline import Shape, pretrain
from model_store.training.recipe import Source
from model_store.training.train import require_training_extra
from model_store.training.train_options import TrainOptions
from model_store.training.watching import continued, duration

SHAPE = Shape(n_embd=32, n_layer=2, n_head=2, n_positions=64)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    toy_tokenizer(folder)
    return folder


def trained(data: Path, out: Path, **options: Any) -> list[str]:
    said: list[str] = []
    given = {"max_steps": 4, "batch_rows": 2, "precision": "fp32", "log_every": 2, **options}
    job = toy_job(out, (Source(data / "text.txt"),), TrainOptions(**given), block=32)
    pretrain(job, data / "tokenizer", SHAPE, said.append)
    return said


def test_lines_tell_speed_and_time_left(data: Path, tmp_path: Path) -> None:
    lines = [line for line in trained(data, tmp_path) if line.startswith("step ")]
    assert re.fullmatch(r"step 2 of 4, loss \d+\.\d{3}, [\d,]+ tokens/s, \d+ s left", lines[0]), lines
    assert re.fullmatch(r"step 4 of 4, validation loss .* tokens/s, 0 s left", lines[-1]), lines


def test_samples_come_as_often_as_asked_for(data: Path, tmp_path: Path) -> None:
    samples = [line for line in trained(data, tmp_path, sample_every=2) if line.startswith("sample")]
    assert [line.split(":")[0] for line in samples] == ["sample at step 2"] * 2 + ["sample at step 4"] * 2
    assert all(line.endswith("⟧") and "⟦" in line for line in samples)


def test_samples_do_not_change_what_is_learned(data: Path, tmp_path: Path) -> None:
    trained(data, tmp_path / "a", sample_every=1)
    trained(data, tmp_path / "b", sample_every=100)
    assert (tmp_path / "a/loss.csv").read_text() == (tmp_path / "b/loss.csv").read_text()


def test_a_sample_is_the_greedy_continuation_of_transformers() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)).train()
    mine = continued(model, [3, 4, 5], 8, eos_id=49)
    assert model.training
    theirs = model.eval().generate(
        torch.tensor([[3, 4, 5]]), max_new_tokens=8, do_sample=False, eos_token_id=49, pad_token_id=49
    )
    assert mine == [token for token in theirs[0, 3:].tolist() if token != 49]


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_a_run_is_reported_to_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(InvalidOption, match="--report-to: wandb is not installed; run: pip install wandb"):
        require_training_extra("wandb")


def test_a_report_goes_to_a_known_place_only() -> None:
    with pytest.raises(InvalidOption, match="report_to: must be tensorboard or wandb, not 'mlflow'"):
        TrainOptions(report_to="mlflow")


# --- disks


def test_too_small_a_disk_is_foreseen_with_figures(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 3_000_000))
    with pytest.raises(DiskFull, match=r"3 MB are free, and the run needs \d+ MB: 2 checkpoints of \d MB"):
        trained(data, tmp_path, save_every=2)
    assert not (tmp_path / "loss.csv").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_is_as_large_as_foreseen(data: Path, tmp_path: Path, optimizer: str) -> None:
    trained(data, tmp_path, save_every=4, optimizer=optimizer)
    files = (tmp_path / "checkpoints" / "checkpoint-4").rglob("*")
    written = sum(path.stat().st_size for path in files if path.is_file())
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    foreseen = checkpoint_bytes(model, TrainOptions(optimizer=optimizer))
    assert written <= foreseen <= written + 1_500_000


def test_a_disk_that_fills_up_is_named_whatever_a_library_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 10))
    with (
        pytest.raises(DiskFull, match="the disk is full: 0 MB are free, and 5 MB were to be written"),
        told_when_full(tmp_path, 5_000_000),
    ):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")


def test_an_error_with_room_on_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), told_when_full(tmp_path, 1):
        raise RuntimeError("shape")


# --- activation


def finetuned(tmp_path: Path, *more: str) -> Result:
    base = write_checkpoint(tmp_path / "tiny") if not (tmp_path / "tiny").exists() else tmp_path / "tiny"
    task = {"name": "m", "kind": "choice", "template": "{text}:", "document": "text", "labels": ["a", "b"]}
    (tmp_path / "tasks.json").write_text(json.dumps(task), encoding="utf-8")
    rows = [{"text": f"x{n}", "label": "ab"[n % 2]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = f"finetune --model {base}/ --tasks {tmp_path}/tasks.json --data m={tmp_path}/rows.jsonl"
    options = f"--block 32 --batch-rows 1 --max-steps 1 --precision fp32 --store {tmp_path}/store"
    return CliRunner().invoke(app, [*command.split(), *options.split(), *more])


def test_a_model_is_activated_once_it_is_trained(tmp_path: Path) -> None:
    for version in "12":
        result = finetuned(tmp_path, "--out", f"{tmp_path}/{version}", "--name", "moods", "--activate")
        assert result.exit_code == 0 and f"added moods@{version}; it is active" in result.stdout, (
            result.output
        )
    assert Store(tmp_path / "store").resolve("moods").version == "2"


def test_only_a_model_with_a_name_can_be_activated(tmp_path: Path) -> None:
    result = finetuned(tmp_path, "--out", f"{tmp_path}/1", "--activate")
    assert result.exit_code == 2 and "--activate: needs --name" in result.stderr
    assert not (tmp_path / "1").exists()
