"""Evaluation measures what is served: at an address and in the process, by the same code."""

import errno
import hashlib
import json
import math
import re
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

from model_store.figures import read_figures
from model_store.importer import import_model
from model_store.manifest import Draft, read_json_manifest, write_manifest
from model_store.store import Store
from model_store.tokenizer import Tokenizer
from model_store.training.evaluate import Service, ask_and_judge, evaluate, perplexity, read_items
from model_store.training.judged import Item
from service.commands.compare import compare
from service.commands.evaluate import evaluate as command
from service.commands.judging import loaded, served_tasks

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


def test_what_is_drawn_is_drawn_alike_each_time(http: httpx.Client) -> None:
    task = served_tasks(http)["generate"]
    items = [Item({task.fields[0]: "Tom gave the drum to Ann."}, ("Ann",)) for _ in range(6)]
    service = Service(http, more={"temperature": 1.5, "max_new_tokens": 8})
    first, second = (ask_and_judge(service, task, items).said for _ in range(2))
    assert first == second and len(set(first)) > 1, first


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


def test_empty_rows_are_left_out_where_that_is_wanted_and_counted(model: Path, tmp_path: Path) -> None:
    options = choices(tmp_path)
    with (tmp_path / "a.csv").open("a", encoding="utf-8") as file:
        file.write("\n ;a\nTom; ")
    refused = CliRunner().invoke(app, ["--model", str(model), *options])
    assert refused.exit_code == 2 and "'text' is empty in 1 rows: 12" in refused.output
    result = CliRunner().invoke(app, ["--model", str(model), *options, "--skip-empty", "--json"])
    assert json.loads(result.stdout)["mood: a.csv"]["count"] == 10
    for key in ("text", "stars"):
        assert f"mood: a.csv: left out, as '{key}' is empty: 1\n" in result.stderr


def test_a_model_without_weights_is_named_when_other_tasks_are_asked(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    result = CliRunner().invoke(app, ["--model", str(folder), *choices(tmp_path)])
    assert result.exit_code == 2 and f"error: {folder} holds no weights" in result.output


def choices(folder: Path) -> list[str]:
    """Options that ask for the mood of ten texts."""
    task = {"name": "mood", "kind": "choice", "template": "{text}", "document": "text", "labels": ["a", "b"]}
    (folder / "tasks.json").write_text(json.dumps(task), encoding="utf-8")
    rows = [f"{name};{label}" for name, label in zip(["Tom", "Ann"] * 5, "aabbababab", strict=True)]
    (folder / "a.csv").write_text("\n".join(["body;stars", *rows]), encoding="utf-8")
    data = ["--data", f"mood={folder / 'a.csv'}", "--map", "text=body,label=stars"]
    return ["--tasks", str(folder / "tasks.json"), *data]


def test_figures_of_a_version_are_recorded_and_a_report_is_written(model: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", builtin=None)
    import_model(store, str(model), "toy")
    arguments = ["--model", "toy@1", "--store", str(store.root), "--record", *choices(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--report", str(tmp_path / "out" / "report.html")])
    assert result.exit_code == 0, result.output
    assert "right answers: " in result.stdout.lower() and "precision" in result.stdout
    kept = read_figures(store.root, "toy", "1")["mood: a.csv"]
    digest = hashlib.sha256((tmp_path / "a.csv").read_bytes()).hexdigest()
    assert kept["count"] == 10 and kept["sha256"] == digest
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "toy@1" in page and "How it learned" in page


@pytest.mark.parametrize("is_compared", [False, True])
def test_what_was_measured_is_shown_though_the_disk_is_full(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_compared: bool
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("model_store.training.report_html.write_atomically", full)
    commands = typer.Typer()
    commands.command()(compare if is_compared else command)
    asked = [f"{model}/"] * 2 if is_compared else ["--model", str(model)]
    page = ["--report", str(tmp_path / "out" / "report.html")]
    result = CliRunner().invoke(commands, [*asked, *choices(tmp_path), *page])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"error: the disk is full where {tmp_path / 'out'} lies" in result.stderr
    assert re.search(r"accuracy +\d", result.stdout)


def test_two_models_are_compared_on_the_same_items(model: Path, tmp_path: Path) -> None:
    arguments = [f"{model}/", f"{model}/", *choices(tmp_path), "--report", str(tmp_path / "c.html")]
    both = typer.Typer()
    both.command()(compare)
    result = CliRunner().invoke(both, arguments)
    assert result.exit_code == 0, result.output
    assert "the difference may be chance" in result.stdout and "+0.00 to +0.00" in result.stdout
    assert "<svg" in (tmp_path / "c.html").read_text(encoding="utf-8")
    values = json.loads(CliRunner().invoke(both, [*arguments, "--json"]).stdout)["mood: a.csv"]
    assert values["accuracy"]["is_clear"] is False


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
