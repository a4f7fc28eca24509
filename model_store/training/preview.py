"""What a run would do, before it does it: examples as they are rendered, their lengths, steps, memory, time.

The data goes through `dataset.build` as in a run, into a folder that is thrown away, and one real step is
timed; nothing is estimated that can be counted. Shown by `cli_preview.py`.
"""

import copy
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from model_store.checkpoint import read_checkpoint
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.base_writing import foreseen
from model_store.training.dataset import build
from model_store.training.defaults import choose_options
from model_store.training.examples import Example, Pair, encode_pair
from model_store.training.keep_near import MOST_MEASURES
from model_store.training.lean_gpt2 import LeanGPT2, optimizer_for
from model_store.training.material import Material, built_valid, lines_on
from model_store.training.packing import Rows
from model_store.training.pipeline import Report
from model_store.training.retention import MEASURED_SHARE, OldWork, old_work
from model_store.training.train import is_bf16, num_steps, quiet_libraries, with_adapters
from model_store.training.train_options import TrainOptions
from model_store.training.watching import MAX_NEW_TOKENS, NUM_SAMPLES, continued
from model_store.weights import load_gpt2

QUANTILES = (0, 50, 90, 99, 100)
_TIMED_STEPS = 2
_SAMPLED_SHARE = 4  # a sample's tokens are so many times those that are timed
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
        num_samples: How often the model shows what it writes.
        num_validations: How often the validation loss is measured.
        step_s: Seconds of a step, as it was timed here.
        valid_s: Seconds of a validation.
        sample_s: Seconds of a sample.
        num_written: Tokens of old work that the base writes itself.
        written_s: Seconds of that.
        measured_s: Seconds in which old work is measured: before, after, and with `--replay` on the way back.
        peak_bytes: The process's memory at its highest (the GPU's, on one), after that step.
    """

    num_rows: int
    num_valid_rows: int
    num_tokens: int
    num_targets: int
    steps: int
    num_samples: int
    num_validations: int
    step_s: float = 0.0
    valid_s: float = 0.0
    sample_s: float = 0.0
    num_written: int = 0
    written_s: float = 0.0
    measured_s: float = 0.0
    peak_bytes: int = 0


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
        old = replace(plan, block=built.block)
        given = old_work(old, material.old, tokenizer, Path(name), material.replay > 0, is_own=False)
        ahead = _ahead(material, chosen, Rows(built.train), Rows(valid), given, model_folder, tokenizer)
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


def _ahead(
    material: Material,
    options: TrainOptions,
    rows: Rows,
    valid: Rows,
    given: Sequence[OldWork],
    model_folder: Path,
    tokenizer: Tokenizer,
) -> Ahead:
    """Time a run's parts on the machine in use; `given` is old work that is not the base's own writing."""
    info, steps = rows.info, num_steps(material.with_old(len(rows)), options)
    num_validations = math.ceil(steps / options.eval_every) if len(valid) else 0
    num_samples = steps // options.sample_every
    counted = (len(rows), len(valid), info.num_tokens, info.num_targets, steps, num_samples, num_validations)
    if not len(rows):
        return Ahead(*counted)
    with quiet_libraries():
        model = load_gpt2(read_checkpoint(model_folder), LeanGPT2)
        num_written, written_s = 0, 0.0
        num_measured = sum(kind.measured.info.num_tokens for kind in given)
        if not material.old:
            num_written, written_s = foreseen(model, tokenizer, material.base_tasks, material.replay > 0)
            num_measured = round(num_written * (MEASURED_SHARE if material.replay else 1))
        batch = _batch(rows, options.batch_rows, material.replay)
        step = _step(model, options, batch, material.replay > 0)
        _seconds(step)  # the first one warms up
        step_s = min(_seconds(step) for _ in range(_TIMED_STEPS))
        peak = _peak_bytes()
        model.eval()
        prompt = batch["input_ids"][0, : info.block // 2].tolist()
        sampled = partial(continued, model, prompt, MAX_NEW_TOKENS // _SAMPLED_SHARE, -1)
        sample_s = NUM_SAMPLES * _SAMPLED_SHARE * _seconds(sampled)
        with torch.no_grad():
            valid_s = _seconds(lambda: model(**batch)) * math.ceil(len(valid) / options.batch_rows)
            ids, positions = batch["input_ids"], batch["position_ids"]
            every = torch.ones_like(ids[:, 1:], dtype=torch.bool)
            token_s = _seconds(lambda: model.log_probabilities(ids, positions, every)) / ids.numel()
    passes = 3 + (2 * MOST_MEASURES if material.replay else 0)  # before; after, with the base beside it
    measured_s = passes * num_measured * token_s
    return Ahead(*counted, step_s, valid_s, sample_s, num_written, written_s, measured_s, peak)


def _batch(rows: Rows, count: int, replay: float) -> dict[str, torch.Tensor]:
    """A step's rows; new ones stand for the old ones that make up the share `replay`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = [rows[index % len(rows)] for index in range(count)]
    batch = {name: torch.stack([row[name] for row in chosen]).to(device) for name in chosen[0]}
    if replay:
        batch["is_old"] = torch.arange(count, device=device) < max(1, round(replay * count))
    return batch


def _step(
    model: LeanGPT2, options: TrainOptions, batch: dict[str, torch.Tensor], is_rehearsed: bool
) -> Callable[[], None]:
    """A step as the Trainer takes it: forward, backward, update; the learning rate is 0."""
    device = batch["input_ids"].device
    model.suit(batch["input_ids"].shape[1])
    if is_rehearsed:
        model.stay_near(copy.deepcopy(model))
    trained = with_adapters(model, options.lora_rank) if options.lora_rank else model
    trained.to(device).train()
    optimizer = optimizer_for(trained, options.optimizer, 0.0, 0.0)

    def step() -> None:
        for _ in range(options.accumulate):
            with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16(options.precision)):
                loss = trained(**batch).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _peak_bytes() -> int:
    """The GPU's memory at its highest, or the process's where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
