"""Training: curve, resume after a kill, early stop, adapters, export, and what is refused before it
begins."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from store_models import gpt2_state, write_config, write_merges
from toy import QA, toy_job, toy_tokenizer, write_text
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from model_store.errors import TokenizerError
from model_store.importer import import_model
from model_store.manifest import read_json_manifest
from model_store.store import Store
from model_store.tokenizer import Tokenizer
from model_store.training import train as train_module
from model_store.training.cli import app
from model_store.training.curve import last_whole_checkpoint, read_curve
from model_store.training.errors import InvalidOption, MissingExtra
from model_store.training.lean_gpt2 import LeanGPT2, new_model
from model_store.training.packing import Rows
from model_store.training.pipeline import Shape, finetune, pretrain
from model_store.training.recipe import Source
from model_store.training.run_folder import prepare_folder
from model_store.training.train_options import TrainOptions

SHAPE = Shape(n_embd=32, n_layer=2, n_head=2, n_positions=64)
OPTIONS = TrainOptions(
    max_steps=12, batch_rows=4, precision="fp32", log_every=2, save_every=4, eval_every=6, learning_rate=3e-3
)
CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_train import OPTIONS, SHAPE
from toy import toy_job
from model_store.training import curve
from model_store.training.recipe import Source
from model_store.training.pipeline import pretrain

point, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
saves = 0

def die(*args, **kwargs):
    global saves
    saves += 1
    if saves == 2:
        os.kill(os.getpid(), signal.SIGKILL)

real = curve.MarkCallback.on_save

def die_before_the_mark(self, *args, **kwargs):
    die()
    real(self, *args, **kwargs)

def die_later(self, args, state, control, **kwargs):
    if state.global_step > 5:
        die()

if point == "before the mark":
    curve.MarkCallback.on_save = die_before_the_mark
else:
    curve.CurveCallback.on_step_end = die_later
job = toy_job(out, (Source(folder / "text.txt"),), OPTIONS)
pretrain(job, folder / "tokenizer", SHAPE, lambda line: None)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy's text and tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    toy_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its model is in `model/`."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    start(data, out, OPTIONS)
    return out


def start(data: Path, out: Path, options: TrainOptions, is_resumed: bool = False) -> list[str]:
    """Pretrain; give what was said."""
    torch.set_num_threads(1)
    said: list[str] = []
    job = toy_job(out, (Source(data / "text.txt"),), options, is_resumed)
    pretrain(job, data / "tokenizer", SHAPE, said.append)
    return said


def curve(out: Path) -> list[dict[str, str]]:
    return read_curve(out / "loss.csv")


def killed(data: Path, out: Path, point: str) -> int:
    """Run pretraining in a process that kills itself; gives its exit code."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", CHILD, point, str(data), str(out)]
    environment = {"PYTHONPATH": f"{here}:{here.parent}:{here.parent.parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


# --- the curve and resuming


def test_the_loss_falls(finished: Path) -> None:
    losses = [float(row["loss"]) for row in curve(finished) if row["loss"]]
    assert losses[-1] < losses[0] - 0.3


def test_the_curve_has_the_validation_loss(finished: Path) -> None:
    assert [row["step"] for row in curve(finished) if row["valid_loss"]] == ["6", "12"]


def test_the_curve_is_drawn(finished: Path) -> None:
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("point", ["before the mark", "between checkpoints"])
def test_a_killed_run_goes_on_with_the_same_curve(
    data: Path, finished: Path, tmp_path: Path, point: str
) -> None:
    assert killed(data, tmp_path / "run", point) == -9
    start(data, tmp_path / "run", OPTIONS, is_resumed=True)
    assert curve(tmp_path / "run") == curve(finished)


@pytest.mark.parametrize(
    "more",
    [{}, {"learning_rate": 5.0, "clip": 0.0, "schedule": "constant", "eval_every": 2, "patience": 1}],
    ids=["at the last step", "at an early stop"],
)
def test_a_run_that_died_after_its_end_comes_to_the_same_model_wherever_it_lies(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    class Died(Exception):
        pass

    def die(*_: Any) -> None:
        raise Died

    options = replace(OPTIONS, **more)
    start(data, tmp_path / "whole", options)
    with monkeypatch.context() as dying:
        dying.setattr("model_store.training.pipeline.export", die)
        with pytest.raises(Died):
            start(data, tmp_path / "died", options)
    (tmp_path / "died").rename(tmp_path / "moved")
    start(data, tmp_path / "moved", options, is_resumed=True)
    assert curve(tmp_path / "moved") == curve(tmp_path / "whole")
    assert (int(curve(tmp_path / "moved")[-1]["step"]) < OPTIONS.max_steps) is bool(more)
    figures = [read_json_manifest(tmp_path / name / "model")["evaluation"] for name in ("moved", "whole")]
    assert figures[0] == figures[1]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("moved", "whole")]
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())


def test_half_a_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step, is_whole in ((4, True), (8, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if is_whole:
            (tmp_path / f"checkpoint-{step}" / "whole").touch()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_a_finished_run_is_not_overwritten(data: Path, finished: Path) -> None:
    with pytest.raises(InvalidOption, match="holds a run already; add --resume"):
        start(data, finished, OPTIONS)


def test_a_run_is_not_resumed_with_another_option(data: Path, finished: Path) -> None:
    with pytest.raises(InvalidOption, match=r"learning_rate is 0\.1 now and was 0\.003"):
        start(data, finished, replace(OPTIONS, learning_rate=0.1), is_resumed=True)


def test_of_another_task_the_field_that_differs_is_named(data: Path, finished: Path) -> None:
    run = finished / "options.json"
    (was := json.loads(run.read_text()))["inputs"]["tasks"] = {"qa": {"stop": ["a"], "evidence": 25}}
    now = {**was["inputs"], "tasks": {"qa": {"stop": ["a"], "evidence": 23}}}
    folder = finished.parent / "another"
    (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (folder / "options.json").write_text(json.dumps(was))
    with pytest.raises(InvalidOption, match=r": tasks\.qa\.evidence is 23 now and was 25 in that run$"):
        prepare_folder(folder, TrainOptions(**was["options"]), now, is_resumed=True)


def test_a_run_stops_early_when_validation_gets_worse(data: Path, tmp_path: Path) -> None:
    wild = replace(
        OPTIONS, max_steps=200, learning_rate=5.0, clip=0.0, schedule="constant", eval_every=2, patience=1
    )
    said = start(data, tmp_path / "run", wild)
    assert int(curve(tmp_path / "run")[-1]["step"]) < 100
    assert any(line.startswith("stopped after step ") and "falling" not in line for line in said)
    validated = {
        row["step"]: float(row["valid_loss"]) for row in curve(tmp_path / "run") if row["valid_loss"]
    }
    best = min(validated, key=lambda step: validated[step])
    kept = load_file(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}" / "model.safetensors")
    made = load_file(tmp_path / "run" / "model" / "model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    assert torch.equal(kept[name].to(made[name].dtype), made[name])


def test_a_loss_that_still_falls_at_the_end_is_said(data: Path, tmp_path: Path) -> None:
    said = start(data, tmp_path / "run", replace(OPTIONS, patience=3))
    last = [
        line for line in said if line.startswith("ended after step 12 of 12; the model is that of step 12, ")
    ]
    assert len(last) == 1 and last[0].endswith("; it was still falling, so more --epochs may do better")


def test_all_rows_validate_and_the_last_step_does(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(max_steps=3, batch_rows=8, precision="fp32", eval_every=2)
    job = toy_job(tmp_path, (Source(data / "text.txt"),), options, block=32, valid_share=0.07)
    result = pretrain(job, data / "tokenizer", SHAPE, lambda line: None)
    assert [row["step"] for row in curve(tmp_path) if row["valid_loss"]] == ["2", "3"]
    valid = Rows(next((tmp_path / "rows").glob("*/valid")))
    assert len(valid) % 8
    model = LeanGPT2.from_pretrained(tmp_path / "checkpoints" / "checkpoint-3").eval()
    with torch.inference_mode():
        means = [
            float(model(**batch(valid, range(n, min(n + 8, len(valid))))).loss)
            for n in range(0, len(valid), 8)
        ]
    sizes = [min(8, len(valid) - n) for n in range(0, len(valid), 8)]
    mean = sum(m * n for m, n in zip(means, sizes, strict=True)) / len(valid)
    assert result.valid_loss == pytest.approx(mean, abs=1e-4)


def batch(rows: Rows, numbers: range) -> dict[str, torch.Tensor]:
    return {name: torch.stack([rows[number][name] for number in numbers]) for name in rows[0]}


@pytest.mark.parametrize("block", [64, 256])
def test_the_way_that_suits_a_block_gives_the_same_loss(block: int) -> None:
    torch.manual_seed(0)
    model = LeanGPT2(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=256)).eval()
    ids = torch.randint(0, 50, (2, block))
    positions = torch.cat([torch.arange(block // 4), torch.arange(block - block // 4)]).expand(2, -1)
    with torch.inference_mode():
        before = float(model(ids, ids, positions).loss)
        model.suit(block)
        assert float(model(ids, ids, positions).loss) == pytest.approx(before, abs=1e-5)
    assert model.config._attn_implementation == ("eager" if block == 64 else "sdpa")


# --- the model


def test_a_new_model_can_copy_before_it_is_trained() -> None:
    config = GPT2Config(vocab_size=4000, n_embd=256, n_layer=6, n_head=8, n_positions=128)
    model = GPT2LMHeadModel(config).eval()
    model.load_state_dict(new_model(config, seed=0).state_dict())
    text = torch.randint(0, 4000, (8, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        said = model(torch.cat([text, text], 1)).logits[:, 40:-1].argmax(-1)
    assert (said == text[:, 1:]).float().mean() > 0.5


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_the_lean_loss_is_that_of_transformers(share: float) -> None:
    torch.manual_seed(0)
    model = LeanGPT2(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    ids = torch.randint(0, 50, (3, 32))
    labels = torch.where(torch.rand(3, 32) < share, ids, -100)
    plain = GPT2LMHeadModel(model.config).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.isclose(model(ids, labels).loss, plain(ids, labels=labels).loss, atol=1e-5)


def test_a_weighted_loss_of_two_halves_is_that_of_the_whole() -> None:
    torch.manual_seed(0)
    model = LeanGPT2(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    ids, weights = torch.randint(0, 50, (2, 32)), torch.full((2, 32), 0.5)
    count = torch.tensor(ids[:, 1:].numel())
    halves = [model(ids[n : n + 1], ids[n : n + 1], None, weights[:1], count).loss for n in range(2)]
    assert torch.isclose(sum(halves), model(ids, ids, None, weights).loss, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_adapters_are_merged_into_ordinary_weights(data: Path, finished: Path, tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", (Source(data / "text.txt"),), replace(OPTIONS, lora_rank=2))
    finetune(job, finished / "model", report=lambda line: None)
    before, after = (load_file(f / "model.safetensors") for f in (finished / "model", tmp_path / "run/model"))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and {name.rsplit(".", 2)[-2] for name in changed} == {
        "c_attn",
        "c_proj",
        "c_fc",
    }


# --- export


def test_the_export_is_taken_by_the_store(finished: Path, tmp_path: Path) -> None:
    entry = import_model(Store(tmp_path / "store"), str(finished / "model"), "toy")
    assert entry.tasks["qa"] == QA


def test_the_export_names_the_class_that_others_load(finished: Path) -> None:
    config = json.loads((finished / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GPT2LMHeadModel"]


def test_weights_are_exported_in_the_type_that_was_asked_for(data: Path, tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", (Source(data / "text.txt"),), replace(OPTIONS, max_steps=2))
    pretrain(replace(job, dtype="bf16"), data / "tokenizer", SHAPE, lambda line: None)
    types = {tensor.dtype for tensor in load_file(tmp_path / "run/model/model.safetensors").values()}
    assert types == {torch.bfloat16}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose tokenizer has tokens that only added_tokens.json knows; one of them ends a text."""
    folder = write_merges(tmp_path / "base")
    size = Tokenizer.load(folder).vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<|end|>": size, "<|user|>": size + 1}))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {size}, "top_k": 7}}')
    write_config(folder, vocab_size=size + 2)
    save_file(gpt2_state(size + 2), folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_tokenizer_that_was_trained_with_is_exported(data: Path, base: Path, tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", (Source(data / "text.txt"),), replace(OPTIONS, max_steps=1), block=32)
    finetune(job, base, report=lambda line: None)
    size = Tokenizer.load(base).vocab_size
    before, after = (Tokenizer.load(folder, size) for folder in (base, tmp_path / "run" / "model"))
    assert after.is_same(before) and after.encode_specials("<|user|>")[0] == after.eos_id + 1
    generation = json.loads((tmp_path / "run/model/generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["top_k"]) == (after.eos_id, 7)


def test_another_tokenizer_is_noticed_before_the_first_step(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "is_same", lambda self, other: False)
    job = toy_job(tmp_path / "run", (Source(data / "text.txt"),), replace(OPTIONS, max_steps=1), block=32)
    with pytest.raises(TokenizerError, match="is not the one in"):
        finetune(job, base, report=lambda line: None)
    assert not (tmp_path / "run" / "loss.csv").exists()


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "steps"}, "schedule: must be one of cosine, linear, constant"),
        ({"batch_rows": -1}, "batch_rows: must be a number from 0"),
        ({"learning_rate": float("inf")}, "learning_rate: must be a number from 0"),
        ({"warmup_share": 1.0}, "warmup_share: must be from 0 to below 1"),
    ],
)
def test_a_wrong_option_is_named_with_the_legal_values(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        TrainOptions(**options)  # type: ignore[arg-type]


def test_a_text_shorter_than_a_block_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Tom.", encoding="utf-8")
    job = toy_job(tmp_path / "run", (Source(tmp_path / "short.txt"),), OPTIONS)
    with pytest.raises(InvalidOption, match=r"short\.txt: the text is shorter than a block"):
        pretrain(job, data / "tokenizer", SHAPE, lambda line: None)


def test_a_block_beyond_the_positions_is_refused(data: Path, tmp_path: Path) -> None:
    job = toy_job(tmp_path, (Source(data / "text.txt"),), OPTIONS, block=65)
    with pytest.raises(InvalidOption, match="--block: must be from 8 to the model's 64 positions"):
        pretrain(job, data / "tokenizer", SHAPE, lambda line: None)


def test_a_missing_extra_is_named_before_anything_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'textgen-service\[train\]'"):
        train_module.require_training_extra()


# --- the commands


def test_a_model_is_made_by_commands_alone(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    tokenizer, out, store = tmp_path / "tokenizer", tmp_path / "run", tmp_path / "store"
    small = "--n-embd 32 --n-layer 2 --n-head 2 --n-positions 64 --block 32 --max-steps 3 --log-every 1"
    commands = [
        f"train-tokenizer {text} --out {tokenizer} --vocab-size 300",
        f"pretrain --text {text} --tokenizer {tokenizer} --out {out} --name toy --store {store} {small}",
    ]
    for command in commands:
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    assert Store(store).resolve("toy@1").manifest.command.startswith("textgen")


def test_a_wrong_file_ends_a_command_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\n")
    result = CliRunner().invoke(app, ["train-tokenizer", str(tmp_path / "bad.txt"), "--out", str(tmp_path)])
    assert (result.exit_code, result.output.count("\n")) == (2, 1) and "line 2" in result.output


def test_chinese_goes_from_text_to_a_model(tmp_path: Path) -> None:
    text = tmp_path / "zh.txt"
    text.write_text("子曰學而時習之不亦說乎。有朋自遠方來不亦樂乎。\n<|endoftext|>\n" * 60, encoding="utf-8")
    assert (
        CliRunner()
        .invoke(app, f"train-tokenizer {text} --out {tmp_path}/t --vocab-size 320".split())
        .exit_code
        == 0
    )
    job = toy_job(tmp_path / "run", (Source(text),), replace(OPTIONS, learning_rate=1e-2), block=32)
    pretrain(job, tmp_path / "t", SHAPE, lambda line: None)
    with (tmp_path / "run" / "loss.csv").open(encoding="utf-8") as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream) if row["loss"]]
    assert losses[-1] < losses[0] - 0.5
