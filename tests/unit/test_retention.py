"""What a base could do before: written by itself or given, measured before and after, rehearsed."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import QA, finetuned_model, toy_job, toy_records, write_records, write_text
from transformers import GPT2LMHeadModel

from model_store import weights
from model_store.checkpoint import read_checkpoint
from model_store.manifest import read_json_manifest
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.base_writing import _Writer, foreseen, written_by
from model_store.training.dataset import BuildPlan
from model_store.training.errors import InvalidOption
from model_store.training.examples import Example
from model_store.training.keep_near import keep_near
from model_store.training.lean_gpt2 import _STRENGTH, LeanGPT2
from model_store.training.material import Material
from model_store.training.packing import Rows, RowWriter
from model_store.training.pipeline import finetune
from model_store.training.recipe import Source
from model_store.training.retention import Mixed, OldWork, forgotten, losses, old_work, told
from model_store.training.train_options import TrainOptions
from model_store.training.watching import continued
from model_store.weights import load_gpt2

MOOD = Task("mood", "choice", "{text}\nMood:", document="text", labels=("good", "bad"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned the toy's questions."""
    torch.set_num_threads(1)
    return finetuned_model(tmp_path_factory.mktemp("base"), steps=40)


def rows(folder: Path, count: int, token: int) -> Rows:
    writer = RowWriter(folder, block=8, pad_id=0, vocab_size=100)
    for _ in range(count):
        writer.add_text(Example([token] * 8, [True] * 8))
    writer.finish()
    return Rows(folder)


def moods(base: Path, out: Path, options: dict[str, Any], **material: Any) -> list[str]:
    """Train the base on a new task; give what was said."""
    path = out.parent / "moods.jsonl"
    lines = [{"text": f"Tom has {n} coins.", "label": ("good", "bad")[n % 2]} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    given = TrainOptions(
        precision="fp32", batch_rows=4, max_steps=60, learning_rate=3e-3, patience=0, **options
    )
    job = toy_job(out, (Source(path, "examples", "mood"),), given, block=64, is_loss_everywhere=False)
    changed = replace(job.material, tasks={"mood": MOOD, "qa": QA}, base_tasks={"qa": QA}, **material)
    said: list[str] = []
    finetune(replace(job, material=changed), base, said.append)
    return said


def rises(said: list[str]) -> dict[str, float]:
    """By how many percent the loss on each kind of old work rose."""
    found = (re.fullmatch(r"old work, (\w+): loss .* \(([+-][\d.]+) %\)", line) for line in said)
    return {match[1]: float(match[2]) for match in found if match}


# --- what the base writes


def test_a_base_writes_texts_and_examples_that_its_tasks_take(base: Path, tmp_path: Path) -> None:
    model = load_gpt2(read_checkpoint(base), LeanGPT2)
    said: list[str] = []
    found = written_by(model, Tokenizer.load(base), {"qa": QA}, tmp_path, False, 0, said.append)
    assert [(source.kind, source.task) for source in found] == [("text", ""), ("examples", "qa")]
    records = [json.loads(line) for line in found[1].path.read_text(encoding="utf-8").splitlines()]
    assert records and all(set(r) == {"context", "question", "answer"} and all(r.values()) for r in records)
    before = [source.path.stat().st_mtime_ns for source in found]
    written_by(model, Tokenizer.load(base), {"qa": QA}, tmp_path, False, 0, said.append)
    assert [source.path.stat().st_mtime_ns for source in found] == before


def test_a_base_that_writes_slowly_says_how_far_it_is(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.training.base_writing._QUIET_S", -1.0)
    model, said = load_gpt2(read_checkpoint(base), LeanGPT2), list[str]()
    first = "old work: written by the base itself (text-48, qa-12)"
    written_by(model, Tokenizer.load(base), {"qa": QA}, tmp_path, False, 0, said.append)
    assert said[0] == first and len(said) > 2
    shares = [re.fullmatch(r"old work: (\d+) % written, about .+ left", line) for line in said[1:]]
    found = [int(match[1]) for match in shares if match]
    assert len(found) == len(shares) and found == sorted(found) and found[-1] < 100
    written_by(model, Tokenizer.load(base), {"qa": QA}, tmp_path, False, 0, said.append)
    assert said[1 + len(shares) :] == [first]


def test_what_is_foreseen_is_what_is_drawn(base: Path) -> None:
    model, tokenizer = load_gpt2(read_checkpoint(base), LeanGPT2), Tokenizer.load(base)
    write, steps = _Writer(model, tokenizer, torch.Generator()), list[int]()
    write.tell = lambda: steps.append(1)
    write.texts(48)
    no_task, seconds = foreseen(model, tokenizer, {}, False)
    assert no_task == 48 * 128 and len(steps) == 127 and seconds > 0  # the toy has 128 positions
    steps.clear()
    short = replace(QA, template="{context}\nQ: {question}\n", no_answer="")
    assert write.examples(short, 80) and len(steps) <= 2 * (96 + 24 + 24)
    num_tokens, longer = foreseen(model, tokenizer, {"qa": QA}, True)
    assert num_tokens == 8 * (no_task + 12 * (96 + 24 + 24)) and longer > seconds


def test_padded_prompts_are_continued_as_they_are_alone(base: Path) -> None:
    model, tokenizer = load_gpt2(read_checkpoint(base), LeanGPT2), Tokenizer.load(base)
    with torch.no_grad():
        model.lm_head.weight *= 1000  # the likeliest token is the only one left to draw
    write = _Writer(model, tokenizer, torch.Generator().manual_seed(0))
    prompts = [tokenizer.encode(text) for text in ("Tom", "Ann gave a stone to Bob. Tom")]
    alone = [continued(model, prompt, 12, tokenizer.eos_id) for prompt in prompts]
    assert write.continued(prompts, 12) == alone


# --- mixing


@pytest.mark.parametrize(("share", "num_old"), [(0.0, 0), (0.2, 5), (0.5, 20), (0.75, 60)])
def test_old_rows_make_up_their_share(tmp_path: Path, share: float, num_old: int) -> None:
    mixed = Mixed(rows(tmp_path / "new", 20, 1), [rows(tmp_path / "old", 7, 2)], share)
    tokens = [int(mixed[index]["input_ids"][0]) for index in range(len(mixed))]
    assert tokens == [1] * 20 + [2] * num_old
    assert Material(sources=(), replay=share).with_old(20) == len(mixed)


def test_every_kind_of_old_work_is_rehearsed(tmp_path: Path) -> None:
    kinds = [rows(tmp_path / str(token), 40, token) for token in (2, 3, 4)]
    mixed = Mixed(rows(tmp_path / "new", 20, 1), kinds, 0.5)
    assert {int(mixed[index]["input_ids"][0]) for index in range(20, len(mixed))} == {2, 3, 4}


def test_kinds_are_rehearsed_equally_often_however_few_rows_they_fill(tmp_path: Path) -> None:
    kinds = [rows(tmp_path / str(token), count, token) for token, count in ((2, 50), (3, 4), (4, 1))]
    mixed = Mixed(rows(tmp_path / "new", 30, 1), kinds, 0.5)
    taken = [mixed[index] for index in range(len(mixed))]
    assert Counter(int(row["input_ids"][0]) for row in taken) == {1: 30, 2: 10, 3: 10, 4: 10}
    assert [bool(row["is_old"]) for row in taken] == [False] * 30 + [True] * 30


def test_each_epoch_rehearses_other_old_rows(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "old", block=8, pad_id=0, vocab_size=100)
    for token in range(10, 30):
        writer.add_text(Example([token] * 8, [True] * 8))
    writer.finish()
    mixed = Mixed(rows(tmp_path / "new", 8, 1), [Rows(tmp_path / "old")], 0.5)
    taken = []
    for epoch in range(3):
        mixed.set_epoch(epoch)
        taken.append([int(mixed[index]["input_ids"][0]) for index in range(8, 16)])
    assert taken == [list(range(10, 18)), list(range(18, 26)), [*range(26, 30), *range(10, 14)]]


def test_old_rows_hold_a_model_to_what_the_base_says(base: Path) -> None:
    model = moved(base, 0.05).eval()
    model.stay_near(moved(base, 0).eval())
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(300, (3, 12), generator=generator)
    positions = torch.tensor([[*range(7), *range(4), 0]] * 3)  # two examples, and padding
    labels = torch.where(positions > 4, ids, -100)
    is_old = torch.tensor([False, True, True])
    given = {"position_ids": positions, "is_old": is_old}

    found = model(ids, labels, **given).loss

    with torch.no_grad():
        learned = model(ids[:1], labels[:1], position_ids=positions[:1]).loss
        new, old = (
            GPT2LMHeadModel.forward(m, ids[1:], position_ids=positions[1:], use_cache=False).logits
            for m in (model, moved(base, 0).eval())
        )
    places = [*range(6), *range(7, 10)]
    p, q = (logits[:, places].softmax(-1) for logits in (old, new))
    each = (p * (p.log() - q.log())).sum(-1)
    of_labels = each[:, [4, 5]]  # positions 5 and 6 of the first example are labels
    drift = each.mean() + of_labels.mean()
    assert each.mean() > 0.001
    assert torch.isclose(found, learned / 3 + 2 / 3 * _STRENGTH * drift, rtol=1e-4)
    summed = model(ids, labels, num_items_in_batch=30, **given).loss
    assert torch.isclose(summed, found * int((labels != -100).sum()) / 30, rtol=1e-5)


def test_rows_that_are_all_old_are_learned_from_too(base: Path) -> None:
    model = moved(base, 0.05)
    model.stay_near(moved(base, 0))
    ids = torch.arange(8)[None]
    loss = model(ids, ids, position_ids=ids, is_old=torch.tensor([True]), num_items_in_batch=7).loss
    loss.backward()
    assert loss > 0 and model.transformer.h[0].mlp.c_fc.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model._base[0].parameters())


def test_nothing_to_rehearse_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="--replay: finds no old work to rehearse"):
        Mixed(rows(tmp_path / "new", 20, 1), [], 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_from_0_to_below_1(share: float) -> None:
    with pytest.raises(InvalidOption, match="--replay: must be from 0 to below 1"):
        Material(sources=(), replay=share)


# --- measuring


def test_a_loss_beyond_the_bound_is_said_in_capitals() -> None:
    assert told({"text": 2.0}, {"text": 2.09}) == ["old work, text: loss 2.000 before, 2.090 after (+4.5 %)"]
    lines = told({"text": 2.0, "qa": 1.0}, {"text": 2.2, "qa": 1.0})
    assert lines[-1].startswith(
        "THE MODEL HAS FORGOTTEN: THE LOSS ON TEXT ROSE BY MORE THAN 5 %; TRY --replay 0.3, "
    )
    assert "TRY A LARGER --replay THAN 0.4, A LOWER" in told({"qa": 1.0}, {"qa": 2.0}, 0.4)[-1]


def test_what_is_forgotten_is_measured_and_less_with_replay(base: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone = moods(base, tmp_path / "alone", {})
    rehearsed = moods(base, tmp_path / "rehearsed", {}, replay=0.5)
    assert rises(alone).keys() == rises(rehearsed).keys() == {"text", "qa"}
    assert rises(alone)["text"] > 5 and any("HAS FORGOTTEN" in line for line in alone)
    assert rises(rehearsed)["text"] < rises(alone)["text"] / 2
    kept = read_json_manifest(tmp_path / "alone" / "model")["evaluation"]["old work"]
    assert set(kept) == {f"{name} loss {when}" for name in ("text", "qa") for when in ("before", "after")}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_adapters_are_held_to_the_base_too(base: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    adapters = {"lora_rank": 4}
    alone, held = (moods(base, tmp_path / str(share), adapters, replay=share, old=()) for share in (0.0, 0.5))
    assert rises(held).keys() == {"text", "qa"}
    assert rises(held)["text"] < rises(alone)["text"] / 2


@pytest.fixture
def measured(base: Path, tmp_path: Path) -> tuple[OldWork, ...]:
    plan = BuildPlan((), {}, 64, is_loss_everywhere=False)
    sources = [Source(write_text(tmp_path / "old.txt", 60))]
    return old_work(plan, sources, Tokenizer.load(base), tmp_path / "rows", False, is_own=False)


def test_what_the_base_wrote_is_measured_by_all_that_it_could_have_written(
    base: Path, measured: tuple[OldWork, ...]
) -> None:
    known, model = moved(base, 0), moved(base, 0.05)
    own = [replace(each, is_own=True) for each in measured]
    before, after = losses(known, known, own)["text"], losses(model, known, own)["text"]
    row = measured[0].measured[0]
    with torch.no_grad():
        old, new = (
            GPT2LMHeadModel.forward(m.eval(), row["input_ids"][None]).logits[0, :-1].log_softmax(-1)
            for m in (known, model)
        )
    one = [replace(own[0], measured=[row])]
    assert losses(known, known, one)["text"] == pytest.approx(float(-(old.exp() * old).sum(-1).mean()), 1e-4)
    assert losses(model, known, one)["text"] == pytest.approx(float(-(old.exp() * new).sum(-1).mean()), 1e-4)
    assert before < after != losses(model, known, measured)["text"]


def test_a_base_is_read_once_and_asked_once(
    base: Path, measured: tuple[OldWork, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    read, asked = list[Any](), list[int]()
    load, ask = weights.load_gpt2, LeanGPT2.log_probabilities
    monkeypatch.setattr(weights, "load_gpt2", lambda *given: (read.append(given[1:]), load(*given))[1])
    monkeypatch.setattr(LeanGPT2, "log_probabilities", lambda *given: (asked.append(1), ask(*given))[1])
    known = moved(base, 0)
    losses(known, known, [replace(each, is_own=True) for each in measured])
    assert len(asked) == math.ceil(len(measured[0].measured) / 8)
    moods(base, tmp_path / "run", {}, replay=0.5)
    assert read.count((LeanGPT2,)) == 1


def moved(base: Path, size: float) -> Any:
    """The base with its weights moved by chance."""
    model = load_gpt2(read_checkpoint(base), LeanGPT2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * torch.randn(weight.shape, generator=generator) * weight.std()
    return model


def test_a_part_of_what_was_learned_is_taken_back_until_old_work_stays(
    base: Path, measured: tuple[OldWork, ...]
) -> None:
    known = moved(base, 0)
    before = losses(known, known, measured)
    sizes = (1.3**n / 100 for n in range(30))
    size = next(size for size in sizes if forgotten(before, losses(moved(base, size), known, measured)))
    model, said = moved(base, size), list[str]()
    after, valid_loss = keep_near(model, known, measured, before, measured[0].measured, said.append)
    share = float(said[0].partition(" %")[0]) / 100
    assert 0 < share < 1 and not forgotten(before, after) and valid_loss == after["text"]
    name = "transformer.h.0.mlp.c_fc.weight"
    old, new, kept = (dict(m.named_parameters())[name] for m in (moved(base, 0), moved(base, size), model))
    assert torch.allclose(kept, torch.lerp(old, new, share), atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 100.0])
def test_nothing_is_taken_back_where_nothing_was_forgotten_or_it_would_not_help(
    base: Path, measured: tuple[OldWork, ...], size: float
) -> None:
    known = moved(base, 0)
    before, model, said = losses(known, known, measured), moved(base, size), list[str]()
    after, valid_loss = keep_near(model, known, measured, before, None, said.append)
    assert [line.partition(":")[0] for line in said] == (["nothing is taken back"] if size else [])
    assert valid_loss is None and bool(forgotten(before, after)) is (size > 0)
    assert losses(model, known, measured) == after == losses(moved(base, size), known, measured)


def test_old_work_that_is_given_is_what_is_measured(base: Path, tmp_path: Path) -> None:
    old = Source(write_records(tmp_path / "old.jsonl", toy_records(80, seed=7)), "examples", "qa")
    said = moods(base, tmp_path / "run", {}, replay=0.5, old=(old,))
    assert rises(said).keys() == {"qa"} and not any("written by the base" in line for line in said)
    assert any(re.match(r"replay: \d+ rows of old work in an epoch", line) for line in said)
