"""What a training run takes where no option says it, and what becomes of runs that go wrong."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from store_models import write_config
from toy import QA, toy_job, toy_records, toy_tokenizer, write_records

from model_store.architecture import Architecture, read_architecture
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training import reading
from model_store.training.cli_draft import trained_tasks
from model_store.training.dataset import build
from model_store.training.defaults import choose_held, choose_options
from model_store.training.errors import Diverged
from model_store.training.pipeline import Shape, lines_on, pretrain
from model_store.training.recipe import Source
from model_store.training.task_rows import TaskRow
from model_store.training.train_options import TrainOptions

SHAPE = Shape(n_embd=32, n_layer=2, n_head=2, n_positions=512)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    toy_tokenizer(folder)
    write_records(folder / "qa.jsonl", toy_records(200, seed=5))
    return folder


def architecture(folder: Path, **values: int) -> Architecture:
    folder.mkdir()
    write_config(folder, **values)
    return read_architecture(folder)


def test_the_block_holds_99_of_100_examples(data: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(data / "tokenizer")
    job = toy_job(tmp_path, (Source(data / "qa.jsonl", "examples", "qa"),), TrainOptions(), block=0)
    built = build(job.material.plan(512, seed=0), tokenizer, tmp_path / "rows", lambda line: None)
    said = lines_on(built)
    assert built.block % 32 == 0 and 64 <= built.block < 512
    assert said[0] == f"block {built.block}: 99 % of 200 examples have at most {_longest(said[0])} tokens"
    assert built.block - 32 < max(64, _longest(said[0])) <= built.block


def _longest(line: str) -> int:
    return int(line.rpartition(" at most ")[2].split()[0])


def test_the_block_of_text_is_the_models(data: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(data / "tokenizer")
    job = toy_job(tmp_path, (Source(data / "text.txt"),), TrainOptions(), block=0)
    built = build(job.material.plan(128, seed=0), tokenizer, tmp_path / "rows", lambda line: None)
    assert (built.block, built.why) == (128, "for text")


def test_data_is_read_once_whoever_chooses_the_block(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = reading.task_rows

    def counted(source: Source, task: Task, file: Path, counts: Counter[str]) -> Iterator[TaskRow]:
        read.append(file)
        yield from real(source, task, file, counts)

    monkeypatch.setattr(reading, "task_rows", counted)
    job = toy_job(tmp_path, (Source(data / "qa.jsonl", "examples", "qa"),), TrainOptions(), block=0)
    plan, tokenizer = job.material.plan(512, seed=0), Tokenizer.load(data / "tokenizer")
    first = build(plan, tokenizer, tmp_path / "rows", lambda line: None)
    assert read == [data / "qa.jsonl"]
    again = build(plan, tokenizer, tmp_path / "rows", lambda line: None)
    given = build(replace(plan, block=first.block), tokenizer, tmp_path / "rows", lambda line: None)
    assert (again, given) == (first, replace(first, why="")) and len(read) == 1


@pytest.mark.parametrize("num_words", [30, 400, 3000, 40_000])
def test_a_short_text_has_short_rows(data: Path, tmp_path: Path, num_words: int) -> None:
    tokenizer = Tokenizer.load(data / "tokenizer")
    text = tmp_path / "short.txt"
    text.write_text(" ".join(["apple"] * num_words), encoding="utf-8")
    ids = len(tokenizer.encode(text.read_text(encoding="utf-8"))) + 1
    job = toy_job(tmp_path, (Source(text),), TrainOptions(), block=0)
    built = build(job.material.plan(512, seed=0), tokenizer, tmp_path / "rows", lambda line: None)
    assert built.block == min(512, max(64, ids // 20 // 32 * 32))


@pytest.mark.parametrize(
    ("num_rows", "batch_rows", "epochs", "steps"),
    [(2, 1, 20, 40), (40, 2, 8, 160), (160, 8, 8, 160), (800, 8, 3, 300), (80_000, 8, 3, 30_000)],
)
def test_small_data_is_learned_in_small_batches_and_often(
    num_rows: int, batch_rows: int, epochs: int, steps: int, tmp_path: Path
) -> None:
    chosen, said = choose_options(TrainOptions(), num_rows, architecture(tmp_path / "m"), False)
    assert (chosen.batch_rows, chosen.epochs) == (batch_rows, epochs)
    assert said.startswith(f"{num_rows:,} rows, {steps:,} steps; chosen: batch rows {batch_rows}, epochs")
    assert ("the limit; 150 steps would take 75" in said) is (num_rows == 2)
    assert chosen.log_every == max(1, steps // 50) and chosen.eval_every == 5 * chosen.log_every


@pytest.mark.parametrize(("width", "layers", "rate"), [(256, 6, 2e-4), (768, 12, 1e-4), (1280, 36, 5e-5)])
def test_a_larger_model_learns_at_a_lower_rate(width: int, layers: int, rate: float, tmp_path: Path) -> None:
    base = architecture(tmp_path / "m", n_embd=width, n_layer=layers, n_head=4, vocab_size=8192)
    assert choose_options(TrainOptions(), 100, base, True)[0].learning_rate == rate
    assert choose_options(TrainOptions(lora_rank=4), 100, base, True)[0].learning_rate == 1e-3


def test_a_new_model_sees_its_text_once(tmp_path: Path) -> None:
    chosen, said = choose_options(TrainOptions(), 100, None, True)
    assert (chosen.epochs, chosen.learning_rate, chosen.patience) == (1, 1e-3, 0) and "a new model" in said


def test_a_model_that_goes_on_learning_stops_early_where_it_is_validated(tmp_path: Path) -> None:
    base = architecture(tmp_path / "m")
    chosen, said = choose_options(TrainOptions(), 800, base, True)
    assert chosen.patience == 3 and "early stop after 3 validations" in said
    assert chosen.save_every == chosen.eval_every and chosen.eval_every % chosen.log_every == 0
    assert choose_options(TrainOptions(), 800, base, False)[0].patience == 0
    assert choose_options(TrainOptions(patience=0), 800, base, True)[0].patience == 0


def test_every_validation_of_an_early_stop_leaves_a_checkpoint(tmp_path: Path) -> None:
    given = TrainOptions(patience=2, log_every=4, eval_every=6, save_every=100)
    chosen, _ = choose_options(given, 800, architecture(tmp_path / "m"), True)
    assert (chosen.eval_every, chosen.save_every) == (8, 8)


@pytest.mark.parametrize(("count", "held"), [(5, 0), (40, 4), (800, 80), (2000, 100), (9000, 180)])
def test_a_tenth_of_small_data_validates_and_2_percent_of_large(count: int, held: int) -> None:
    assert choose_held(count, unit=100) == held


def test_what_is_given_is_not_chosen(tmp_path: Path) -> None:
    given = TrainOptions(
        batch_rows=3,
        epochs=0.5,
        learning_rate=0.5,
        log_every=7,
        eval_every=9,
        save_every=11,
        sample_every=13,
        patience=0,
    )
    chosen, said = choose_options(given, 300, architecture(tmp_path / "m"), True)
    assert chosen == given and said == "300 rows, 50 steps; chosen: nothing"


def test_a_run_that_diverges_is_not_exported(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        max_steps=30, batch_rows=2, learning_rate=1e30, clip=0, precision="fp32", log_every=1
    )
    job = toy_job(tmp_path, (Source(data / "text.txt"),), options, block=32)
    with pytest.raises(Diverged, match=r"the training diverged: at step \d+ .* Lower --learning-rate"):
        pretrain(job, data / "tokenizer", SHAPE, lambda line: None)
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_a_run_too_short_for_a_curve_leaves_a_model(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(max_steps=2, batch_rows=2, precision="fp32", log_every=100)
    job = toy_job(tmp_path, (Source(data / "text.txt"),), options, block=32, valid_share=0.0)
    result = pretrain(job, data / "tokenizer", SHAPE, lambda line: None)
    assert (tmp_path / "model" / "model.safetensors").exists() and math.isfinite(result.loss)


def test_a_curve_that_cannot_be_drawn_costs_no_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("model_store.training.curve.plot_curve", broken)
    said: list[str] = []
    options = TrainOptions(max_steps=2, batch_rows=2, precision="fp32")
    job = toy_job(tmp_path, (Source(data / "text.txt"),), options, block=32)
    pretrain(job, data / "tokenizer", SHAPE, said.append)
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert said[-1] == "the model is written; its learning curve is not drawn: no space left"


def test_only_tasks_with_data_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    known = {name: replace(QA, name=name) for name in ("qa", "old", "generate")}
    offered = trained_tasks(known, [Source(Path("qa.jsonl"), "examples", "qa")])
    assert sorted(offered) == ["generate", "qa"]
    assert "no data for them: old (--keep-tasks offers them)" in capsys.readouterr().err
