"""Evaluation measures what is served: at an address and in the process, by the same code."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
import typer
from live_service import Live
from toy import QA, RECORDS, finetuned_model, toy_records, write_records
from transformers import GPT2LMHeadModel
from typer.testing import CliRunner

from model_store.manifest import Draft, read_json_manifest, write_manifest
from model_store.tokenizer import Tokenizer
from model_store.training.evaluate import Service, evaluate, perplexity, read_items
from service.commands.evaluate import evaluate as command
from service.commands.evaluate import loaded, served_tasks

SHORT = {"max_new_tokens": 4}  # the toy's window is small

app = typer.Typer()
app.command()(command)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_THREADS", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows half of the toy's answers: figures that say little would hide differences."""
    torch.set_num_threads(1)
    return finetuned_model(tmp_path_factory.mktemp("toy"), steps=20)


@pytest.fixture(scope="module")
def http(model: Path) -> Iterator[httpx.Client]:
    with loaded(model) as client:
        yield client


def test_both_ways_give_the_same_figures(
    model: Path, http: httpx.Client, serve: Callable[..., Live], tmp_path: Path
) -> None:
    live = serve(model=str(model))
    items = read_items(write_records(tmp_path / "qa.jsonl", toy_records(20, seed=7)), QA)
    with httpx.Client(base_url=live.url, timeout=60) as remote:
        there = evaluate(Service(remote, more=SHORT), QA, items)
    here = evaluate(Service(http, more=SHORT), QA, items)
    assert here == there and 0 < here["f1"] < 100, here


def test_a_service_says_which_tasks_it_has(http: httpx.Client) -> None:
    task = served_tasks(http)["qa"]
    assert (task.kind, set(task.fields)) == ("qa", set(QA.fields))


def test_the_perplexity_is_that_of_transformers(model: Path, tmp_path: Path) -> None:
    text = "Tom gave the old drum to Ann. " * 40
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.load(model)
    reference = GPT2LMHeadModel.from_pretrained(model, dtype=torch.float32).eval()
    n_positions = reference.config.n_positions
    ids = [*tokenizer.encode(text.strip()), tokenizer.eos_id]
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, n_positions - 1):
        piece = torch.tensor([ids[start : start + n_positions]])
        with torch.inference_mode():
            scores = reference(piece).logits[0, :-1].log_softmax(-1)
        total -= float(scores.gather(1, piece[0, 1:, None]).sum())
        count += piece.shape[1] - 1
    with loaded(model) as client:
        figures = perplexity(Service(client), tokenizer, n_positions, tmp_path / "a.txt")
    assert count > n_positions and figures["tokens"] == count
    assert figures["perplexity"] == pytest.approx(math.exp(total / count), rel=0.02)  # bfloat16


def test_the_command_shows_a_table_and_keeps_the_figures(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_manifest(folder, Draft(tasks={"qa": replace(QA, sampling=SHORT)}).to_dict())
    data = write_records(tmp_path / "a.jsonl", RECORDS[:2])
    result = CliRunner().invoke(app, ["--model", str(folder), "--data", f"qa={data}", "--record"])
    assert result.exit_code == 0 and "f1_answerable" in result.output
    assert "qa: a.jsonl" in read_json_manifest(folder)["evaluation"]


def test_task_definitions_take_the_place_of_the_models(model: Path, tmp_path: Path) -> None:
    task = {"name": "mood", "kind": "choice", "template": "{text}", "document": "text", "labels": ["a", "b"]}
    (tmp_path / "tasks.json").write_text(json.dumps(task), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Tom", "label": "a"}), encoding="utf-8")
    arguments = ["--model", str(model), "--tasks", str(tmp_path / "tasks.json"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--data", f"mood={tmp_path / 'a.jsonl'}"])
    figures = json.loads(result.stdout)["mood: a.jsonl"]
    assert (
        figures["count"] == 1 and figures["accuracy"] in (0, 100) and figures["labels"].keys() == {"a", "b"}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--data: is missing"),
        (("--url", "http://127.0.0.1:9", "--data", "qa=a"), "http://127.0.0.1:9"),
        (("--url", "http://127.0.0.1:9", "--text", "a"), "--text: needs the model itself"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1) and message in result.stderr
