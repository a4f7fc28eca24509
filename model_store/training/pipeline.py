"""Pretraining and fine-tuning from end to end: data to rows, rows to weights, weights to a folder or the
store.

Each function is one command. The parts are in `dataset.py` (rows), `train.py` (the loop) and `export.py`;
options are read and results shown by `cli.py`.
"""

import copy
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from model_store.architecture import Architecture
from model_store.atomic import write_atomically
from model_store.card import CARD, model_card
from model_store.checkpoint import read_checkpoint
from model_store.manifest import Draft
from model_store.tokenizer import Tokenizer
from model_store.training.base_writing import written_by
from model_store.training.dataset import BuildPlan, build
from model_store.training.defaults import choose_options
from model_store.training.disk import checkpoint_bytes, require_room, told_when_full
from model_store.training.errors import InvalidOption, MissingExtra
from model_store.training.export import export, export_tokenizer
from model_store.training.material import Material, built_valid, lines_on
from model_store.training.packing import PackedInfo, Rows, require_rows
from model_store.training.processes import processes, told_once
from model_store.training.retention import Mixed, OldWork, figures_of, losses, old_work, told
from model_store.training.run_folder import Chosen, chosen_before, keep_chosen, prepare_folder
from model_store.training.train import (
    RunResult,
    Watcher,
    num_steps,
    quiet_libraries,
    require_training_extra,
    run,
)
from model_store.training.train_options import TrainOptions

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a new model.

    Args:
        n_embd: Width; a multiple of `n_head`.
        n_layer: Layers.
        n_head: Attention heads.
        n_positions: The longest sequence.
    """

    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 8
    n_positions: int = 1024

    def __post_init__(self) -> None:
        if min(self.n_embd, self.n_layer, self.n_head, self.n_positions) < 1 or self.n_embd % self.n_head:
            raise InvalidOption("--n-embd", "must be a multiple of --n-head, and all sizes at least 1")


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What both commands need.

    Args:
        out: The run's folder; the model goes into `model/` in it.
        material: What to train on.
        options: How to train.
        dtype: Of the exported weights: `bf16`, `fp16`, `fp32`.
        is_resumed: Go on with the run in `out`.
        draft: Tasks, licence, data and command for the manifest.
    """

    out: Path
    material: Material
    options: TrainOptions
    dtype: str = "bf16"
    is_resumed: bool = False
    draft: Draft = field(default_factory=Draft)


def pretrain(job: TrainingJob, tokenizer_folder: Path, shape: Shape, report: Report) -> RunResult:
    """Train a new GPT-2; every token counts in the loss.

    Args:
        job: Data and options.
        tokenizer_folder: What `train-tokenizer` wrote.
        shape: Of the model.
        report: Gets lines for people.

    Raises:
        StoreError: Something given is wrong; nothing was trained.
    """
    require_training_extra(job.options.report_to)
    report = told_once(report)
    tokenizer = Tokenizer.load(tokenizer_folder)
    _prepare(job, {"shape": asdict(shape)})
    data = _data(job, tokenizer, shape.n_positions, None, report)

    from transformers import GPT2Config

    from model_store.training.lean_gpt2 import new_model

    config = GPT2Config(
        vocab_size=tokenizer.vocab_size,
        **asdict(shape),
        bos_token_id=tokenizer.eos_id,
        eos_token_id=tokenizer.eos_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = new_model(config, job.options.seed)
    return _train_and_export(job, model, data, tokenizer_folder, report)


def finetune(job: TrainingJob, model_folder: Path, report: Report) -> RunResult:
    """Train a model on tasks, or on more text.

    Args:
        job: Data and options.
        model_folder: A Hugging Face folder with a tokenizer.
        report: Gets lines for people.

    Raises:
        StoreError: Something given is wrong; nothing was trained.
    """
    require_training_extra(job.options.report_to)
    report = told_once(report)
    from model_store.training.lean_gpt2 import LeanGPT2
    from model_store.weights import load_gpt2

    checkpoint = read_checkpoint(model_folder)
    architecture = checkpoint.architecture
    tokenizer = Tokenizer.load(model_folder, architecture.vocab_size)
    _prepare(job, {"model": str(model_folder)})
    data = _data(job, tokenizer, architecture.n_positions, architecture, report)
    import torch

    torch.manual_seed(job.options.seed)  # new adapters are drawn
    with quiet_libraries():
        model = load_gpt2(checkpoint, LeanGPT2)
    model.config.use_cache = False
    plan = job.material.plan(architecture.n_positions, job.options.seed)
    data = _with_old_work(job, replace(plan, block=data.rows.info.block), model, data, report)
    return _train_and_export(job, model, data, model_folder, report)


@dataclass(frozen=True, slots=True)
class _Data:
    """Rows to learn from and to validate on, the options with nothing left to choose, and old work.

    `base` is the model as it was, where what it learns is held near that.
    """

    train: Rows | Mixed
    rows: Rows
    valid: Rows | None
    options: TrainOptions
    tokenizer: Tokenizer
    old: tuple[OldWork, ...] = ()
    base: Any = None


def _prepare(job: TrainingJob, inputs: dict[str, Any]) -> None:
    """Make or check the run's folder; the processes do it one after the other."""
    with processes().main_process_first():
        prepare_folder(job.out, job.options, {**inputs, **job.material.inputs()}, job.is_resumed)


def _data(
    job: TrainingJob, tokenizer: Tokenizer, num_positions: int, base: Architecture | None, report: Report
) -> _Data:
    """Build the rows, on the first process, and choose what the options leave open; both only once a run."""
    plan = job.material.plan(num_positions, job.options.seed)
    known = chosen_before(job.out) if job.is_resumed else None
    if known is not None:
        plan = replace(plan, block=known.block)
    with processes().main_process_first():
        built = build(plan, tokenizer, job.out / "rows", report)
        valid = Rows(built_valid(job.material, plan, built, tokenizer, job.out / "rows", report))
    train = Rows(built.train, num_positions, job.options.shifted_share, job.options.prompt_weight)
    for line in lines_on(built):
        report(line)
    require_rows(train.info, str(job.material.sources[0].path))
    report(f"{_summary('train', train.info)}; {_summary('valid', valid.info)}")
    if known is None:
        num_rows = job.material.with_old(len(train))
        options, said = choose_options(job.options, num_rows, base, is_validated=len(valid) > 0)
        keep_chosen(job.out, Chosen(options, built.block, built.data))
    elif known.data == built.data:
        options, said = known.options, "as chosen when the run began"
    else:
        raise InvalidOption("--resume", "the data is not what it was when the run began; give another --out")
    report(said)
    return _Data(train, train, valid if len(valid) else None, options, tokenizer)


def _with_old_work(job: TrainingJob, plan: BuildPlan, model: Any, data: _Data, report: Report) -> _Data:
    """Add what the base could do before: to measure on and, where that is wanted, to learn from."""
    material, options, cache = job.material, data.options, job.out / "rows"
    is_rehearsed = material.replay > 0
    with processes().main_process_first():
        sources = material.old
        if not sources:
            plan = replace(plan, tasks=material.base_tasks)
            sources = written_by(
                model, data.tokenizer, plan.tasks, cache / "base", is_rehearsed, plan.seed, report
            )
        is_own = not material.old
        kinds = old_work(plan, sources, data.tokenizer, cache, is_rehearsed, is_own)
    if not is_rehearsed:
        return replace(data, old=kinds)
    learned = [
        Rows(kind.train, plan.num_positions, options.shifted_share, options.prompt_weight) for kind in kinds
    ]
    mixed = Mixed(data.rows, learned, material.replay)
    base = copy.deepcopy(model)
    base.suit(plan.block)
    model.stay_near(base)
    report(f"replay: {mixed.num_old:,} rows of old work in an epoch, each {mixed.num_repeats:.1f} times")
    return replace(data, train=mixed, old=kinds, base=base)


def _train_and_export(job: TrainingJob, model: Any, data: _Data, source: Path, report: Report) -> RunResult:
    if processes().is_main_process:
        export_tokenizer(model, source, job.out / "model")
        require_room(job.out, model, data.options, num_steps(len(data.train), data.options), job.dtype)
    from model_store.training.curve import plot_curve
    from model_store.training.keep_near import keep_near
    from model_store.training.lean_gpt2 import LeanGPT2
    from model_store.weights import load_gpt2

    before = losses(model, model, data.old)
    watcher = Watcher(data.tokenizer, data.valid or data.rows, report)
    result = run(model, data.train, data.valid, job.out, data.options, watcher)
    if processes().is_main_process:
        figures: dict[str, Any] = {}
        if before:
            base = data.base
            if base is None and any(kind.is_own for kind in data.old):
                with quiet_libraries():
                    base = load_gpt2(read_checkpoint(source), LeanGPT2)
            if job.material.replay:
                after, valid_loss = keep_near(model, base, data.old, before, data.valid, report)
                result = replace(result, valid_loss=valid_loss or result.valid_loss)
            else:
                after = losses(model, base, data.old)
            figures["old work"] = figures_of(before, after)
            for line in told(before, after, job.material.replay):
                report(line)
        figures["training"] = asdict(result)
        with told_when_full(job.out, checkpoint_bytes(model, data.options)):
            full = export(model, job.out / "model", job.dtype, replace(job.draft, evaluation=figures))
        try:  # a picture is worth no model
            plot_curve(job.out / "loss.csv", job.out / "loss.png")
        except (OSError, ValueError, MissingExtra) as error:
            report(f"the model is written; its learning curve is not drawn: {error}")
        card = model_card(job.out.resolve().name, full, job.out)
        write_atomically(job.out / "model" / CARD, card)
        for name in ("loss.csv", "loss.png"):
            if (job.out / name).is_file():
                shutil.copyfile(job.out / name, job.out / "model" / name)
    return result


def _summary(name: str, info: PackedInfo) -> str:
    sizes = f"{info.num_tokens:,} tokens, {info.num_targets:,} targets"
    return f"{name}: {info.num_rows:,} rows of {info.block}, {sizes}"
