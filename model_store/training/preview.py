"""What a run would do, before it does it: examples as they are rendered, their lengths, steps, memory, time.

The data goes through `dataset.build` as in a run, into a folder that is thrown away, and one real step is
timed; nothing is estimated that can be counted. Shown by `cli_preview.py`.
"""

import copy
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from model_store.checkpoint import read_checkpoint
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.dataset import Built, build
from model_store.training.defaults import choose_options
from model_store.training.examples import Example, Pair, encode_pair
from model_store.training.lean_gpt2 import LeanGPT2, optimizer_for
from model_store.training.material import Material
from model_store.training.packing import Rows
from model_store.training.pipeline import Report, built_valid, lines_on
from model_store.training.train import is_bf16, num_steps, with_adapters
from model_store.training.train_options import TrainOptions
from model_store.weights import load_gpt2

QUANTILES = (0, 50, 90, 99, 100)
_TIMED_STEPS = 2
_MARK = "⏹"  # a special token: the end of text, the beginning


@dataclass(slots=True)
class TaskView:
    """A task's examples.

    Args:
        lengths: Tokens of each, prompt and answer, before any cut.
        answers: Of each, those of the answer.
        labels: For `choice`: label -> examples.
        num_cut: Examples that were cut to a block.
        num_left_out: Examples that could not be.
        shown: The first ones, as they are trained on.
    """

    lengths: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    num_cut: int = 0
    num_left_out: int = 0
    shown: list[list[tuple[str, bool]]] = field(default_factory=list)

    def quantiles(self) -> list[int]:
        """The lengths at `QUANTILES`."""
        return [int(value) for value in np.percentile(self.lengths, QUANTILES)]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a run comes to.

    Args:
        num_rows: Rows to learn from.
        num_valid_rows: Rows to validate on.
        num_tokens: Tokens in the rows to learn from, once through.
        num_targets: Those that the loss counts.
        steps: Optimizer steps.
        step_s: Seconds of one, as it was timed here; validation not counted.
        peak_bytes: The process's memory at its highest (the GPU's, on one), after that step.
    """

    num_rows: int
    num_valid_rows: int
    num_tokens: int
    num_targets: int
    steps: int
    step_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Preview:
    """All of it: by task, what was used and left out by reason, and what a run comes to."""

    block: int
    tasks: Mapping[str, TaskView]
    counts: Mapping[str, int]
    ahead: Ahead


def preview(
    material: Material, options: TrainOptions, model_folder: Path, report: Report, shown: int = 2
) -> Preview:
    """Look at what `pipeline.finetune` would do with the same arguments; nothing is kept.

    Args:
        material: What to train on.
        options: How.
        model_folder: The model.
        report: Gets one line for each file.
        shown: Examples of each task to give as text.

    Raises:
        StoreError: What `finetune` would raise.
    """
    checkpoint = read_checkpoint(model_folder)
    tokenizer = Tokenizer.load(model_folder, checkpoint.architecture.vocab_size)
    watcher = _Watcher(tokenizer, material.is_loss_everywhere, shown)
    with tempfile.TemporaryDirectory(prefix="textgen-preview-") as name:
        plan = material.plan(checkpoint.architecture.n_positions, options.seed)
        built = build(plan, tokenizer, Path(name), report, watcher)
        valid = built_valid(material, plan, built, tokenizer, Path(name), report)
        num_rows = material.with_old(len(Rows(built.train)))
        chosen, said = choose_options(
            options, num_rows, checkpoint.architecture, is_validated=len(Rows(valid)) > 0
        )
        for line in (*lines_on(built), said):
            report(line)
        ahead = _ahead(material, chosen, built, Rows(valid), model_folder)
    return Preview(built.block, watcher.tasks, built.counts, ahead)


class _Watcher:
    """Is told of each example on its way into a row."""

    def __init__(self, tokenizer: Tokenizer, is_loss_everywhere: bool, shown: int) -> None:
        self._tokenizer, self._is_loss_everywhere, self._shown = tokenizer, is_loss_everywhere, shown
        self.tasks: dict[str, TaskView] = {}

    def __call__(self, task: Task, pair: Pair, example: Example, fitted: Pair | None) -> None:
        view = self.tasks.setdefault(task.name, TaskView())
        view.lengths.append(len(example.ids))
        view.answers.append(len(task.encode_answer(self._tokenizer, pair.answer)))
        if task.kind == "choice":
            view.labels[pair.answer] += 1
        view.num_cut += fitted is not None and fitted is not pair
        view.num_left_out += fitted is None
        if fitted is not None and len(view.shown) < self._shown:
            view.shown.append(
                self._spans(encode_pair(task, self._tokenizer, fitted, self._is_loss_everywhere))
            )

    def _spans(self, example: Example) -> list[tuple[str, bool]]:
        """The text in pieces that the loss falls on and that it does not; special tokens by their names."""
        spans: list[tuple[str, bool]] = []
        start = 0
        for end in range(1, len(example.ids) + 1):
            if end == len(example.ids) or example.is_target[end] != example.is_target[start]:
                spans.append((self._text(example.ids[start:end]), example.is_target[start]))
                start = end
        return spans

    def _text(self, ids: list[int]) -> str:
        """The text of ids, where the marks at their ends show, too."""
        begin = _MARK * (self._tokenizer.is_special(ids[0]) and len(ids) > 1)
        return begin + self._tokenizer.decode(ids) + _MARK * self._tokenizer.is_special(ids[-1])


def _ahead(material: Material, options: TrainOptions, built: Built, valid: Rows, model_folder: Path) -> Ahead:
    rows = Rows(built.train)
    steps = num_steps(material.with_old(len(rows)), options)
    step_s, peak = _timed_step(options, rows, model_folder, material.replay) if len(rows) else (0.0, 0)
    info = rows.info
    return Ahead(len(rows), len(valid), info.num_tokens, info.num_targets, steps, step_s, peak)


def _timed_step(options: TrainOptions, rows: Rows, model_folder: Path, replay: float) -> tuple[float, int]:
    """Seconds and memory of one optimizer step; the first one, which warms up, is not timed."""
    is_gpu = torch.cuda.is_available()
    step = _step(options, rows, model_folder, replay, "cuda" if is_gpu else "cpu")
    seconds = []
    for _ in range(1 + _TIMED_STEPS):
        begun = time.perf_counter()
        step()
        if is_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    if is_gpu:
        return min(seconds[1:]), torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return min(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _step(
    options: TrainOptions, rows: Rows, model_folder: Path, replay: float, device: str
) -> Callable[[], None]:
    """A step as the Trainer takes it: forward, backward, update; the learning rate is 0.

    New rows stand for the old ones that make up the share `replay`.
    """
    disable_progress_bar()  # a bar for reading the weights
    model = load_gpt2(read_checkpoint(model_folder), LeanGPT2)
    model.suit(rows.info.block)
    if replay:
        model.stay_near(copy.deepcopy(model))
    if options.lora_rank:
        model = with_adapters(model, options.lora_rank)
    model = model.to(device).train()
    optimizer = optimizer_for(model, options.optimizer, 0.0, 0.0)
    chosen = [rows[index % len(rows)] for index in range(options.batch_rows)]
    batch = {name: torch.stack([row[name] for row in chosen]).to(device) for name in chosen[0]}
    if replay:
        batch["is_old"] = torch.arange(len(chosen), device=device) < max(1, round(replay * len(chosen)))

    def step() -> None:
        for _ in range(options.accumulate):
            with torch.autocast(device, torch.bfloat16, enabled=is_bf16(options.precision)):
                loss = model(**batch).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
