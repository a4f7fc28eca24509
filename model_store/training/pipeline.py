"""Pretraining and fine-tuning from end to end: data to rows, rows to weights, weights to a folder or the
store.

Each function is one command. The parts are in `dataset.py` (rows), `train.py` (the loop) and `export.py`;
options are read and results shown by `cli.py`.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from model_store.architecture import Architecture
from model_store.card import CARD, model_card
from model_store.checkpoint import read_checkpoint
from model_store.manifest import Draft
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.dataset import BuildPlan, Built, build, require_block
from model_store.training.defaults import choose_block, choose_options
from model_store.training.errors import InvalidOption, MissingExtra
from model_store.training.export import export, export_tokenizer
from model_store.training.packing import PackedInfo, Rows, require_rows
from model_store.training.recipe import Source, check_tasks
from model_store.training.train import RunResult, TrainOptions, prepare_folder, require_training_extra, run

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
class Job:
    """What both commands need.

    Args:
        out: The run's folder; the model goes into `model/` in it.
        sources: What to learn from.
        valid: What to validate on; may be empty.
        valid_share: The share of `sources` kept for validation where `valid` is empty, from 0 to below 1.
        tasks: By name; they go into the manifest.
        block: Tokens in a row; 0 chooses from the examples' lengths.
        dtype: Of the exported weights: `bf16`, `fp16`, `fp32`.
        is_resumed: Go on with the run in `out`.
        draft: Licence, data and command for the manifest.
        options: How to train.
    """

    out: Path
    sources: tuple[Source, ...]
    valid: tuple[Source, ...]
    valid_share: float
    tasks: Mapping[str, Task]
    block: int
    dtype: str
    is_resumed: bool
    draft: Draft
    options: TrainOptions


def pretrain(job: Job, tokenizer_folder: Path, shape: Shape, report: Report) -> RunResult:
    """Train a new GPT-2; every token counts in the loss.

    Args:
        job: Data and options.
        tokenizer_folder: What `train-tokenizer` wrote.
        shape: Of the model.
        report: Gets lines for people.

    Raises:
        StoreError: Something given is wrong; nothing was trained.
    """
    require_training_extra()
    tokenizer = Tokenizer.load(tokenizer_folder)
    plan = plan_of(job, tokenizer, shape.n_positions, is_loss_everywhere=True, report=report)
    _prepare(job, {"shape": asdict(shape)})
    train, valid = _rows(job, plan, tokenizer, shape.n_positions, report)
    options = _chosen(job, train, None, report)

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
    return _train_and_export(replace(job, options=options), model, train, valid, tokenizer_folder, report)


def finetune(job: Job, model_folder: Path, is_loss_everywhere: bool, report: Report) -> RunResult:
    """Train a model on tasks, or on more text.

    Args:
        job: Data and options.
        model_folder: A Hugging Face folder with a tokenizer.
        is_loss_everywhere: Count the prompts' tokens too; False counts the answers' only.
        report: Gets lines for people.

    Raises:
        StoreError: Something given is wrong; nothing was trained.
    """
    require_training_extra()
    from model_store.training.lean_gpt2 import LeanGPT2
    from model_store.weights import load_gpt2

    checkpoint = read_checkpoint(model_folder)
    architecture = checkpoint.architecture
    tokenizer = Tokenizer.load(model_folder, architecture.vocab_size)
    plan = plan_of(job, tokenizer, architecture.n_positions, is_loss_everywhere, report)
    _prepare(job, {"model": str(model_folder)})
    train, valid = _rows(job, plan, tokenizer, architecture.n_positions, report)
    options = _chosen(job, train, architecture, report)
    import torch

    torch.manual_seed(job.options.seed)  # new adapters are drawn
    model = load_gpt2(checkpoint, LeanGPT2)
    model.config.use_cache = False
    return _train_and_export(replace(job, options=options), model, train, valid, model_folder, report)


def plan_of(
    job: Job, tokenizer: Tokenizer, num_positions: int, is_loss_everywhere: bool, report: Report
) -> BuildPlan:
    """Say what a job's rows are made from, its tasks checked and its block chosen where none is given.

    Raises:
        StoreError: A task is missing, the block is too long, or the data is wrong.
    """
    check_tasks([*job.sources, *job.valid], job.tasks)
    plan = BuildPlan(
        sources=job.sources,
        tasks=job.tasks,
        block=job.block,
        is_loss_everywhere=is_loss_everywhere,
        valid_share=0.0 if job.valid else job.valid_share,
        seed=job.options.seed,
    )
    if not job.block:
        block, why = choose_block(plan, tokenizer, num_positions)
        report(f"block {block}: {why}")
        plan = replace(plan, block=block)
    require_block(plan.block, num_positions)
    return plan


def is_main_process() -> bool:
    """Say whether this is the process, among those of `torchrun`, that reports and writes."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _prepare(job: Job, inputs: dict[str, Any]) -> None:
    """Make or check the run's folder; the processes do it one after the other."""
    from accelerate import PartialState

    with PartialState().main_process_first():
        prepare_folder(job.out, job.options, _inputs(job, inputs), job.is_resumed)


def _rows(
    job: Job, plan: BuildPlan, tokenizer: Tokenizer, num_positions: int, report: Report
) -> tuple[Rows, Rows | None]:
    """Build the rows of both kinds, everything checked."""
    built = _built(plan, tokenizer, job.out, report)
    train = Rows(built.train, num_positions, job.options.shifted_share, job.options.prompt_weight)
    require_rows(train.info, str(job.sources[0].path))
    valid_folder = built.valid
    if job.valid:
        valid_folder = _built(replace(plan, sources=job.valid), tokenizer, job.out, report).train
    valid = Rows(valid_folder)
    report(_summary("train", train.info) + "; " + _summary("valid", valid.info))
    return train, valid if len(valid) else None


def _chosen(job: Job, train: Rows, base: Architecture | None, report: Report) -> TrainOptions:
    """Choose what the options leave open, and say it."""
    options, said = choose_options(job.options, len(train), base)
    report(said)
    return options


def _built(plan: BuildPlan, tokenizer: Tokenizer, out: Path, report: Report) -> Built:
    """Build on the first process, find on the others."""
    from accelerate import PartialState

    with PartialState().main_process_first():
        built = build(plan, tokenizer, out / "rows", report)
    report(", ".join(f"{name}: {count:,}" for name, count in sorted(built.counts.items())))
    return built


def _train_and_export(
    job: Job, model: Any, train: Rows, valid: Rows | None, tokenizer: Path, report: Report
) -> RunResult:
    if is_main_process():
        export_tokenizer(model, tokenizer, job.out / "model")
    from model_store.training.curve import plot_curve

    result = run(model, train, valid, job.out, job.options)
    if is_main_process():
        figures = {"training": asdict(result)}
        full = export(model, job.out / "model", job.dtype, replace(job.draft, evaluation=figures))
        try:  # a picture is worth no model
            plot_curve(job.out / "loss.csv", job.out / "loss.png")
        except (OSError, ValueError, MissingExtra) as error:
            report(f"the model is written; its learning curve is not drawn: {error}")
        card = model_card(job.out.resolve().name, full, job.out)
        (job.out / "model" / CARD).write_text(card, encoding="utf-8")
        for name in ("loss.csv", "loss.png"):
            if (job.out / name).is_file():
                shutil.copyfile(job.out / name, job.out / "model" / name)
    return result


def _inputs(job: Job, more: dict[str, Any]) -> dict[str, Any]:
    """What decides a run beside its options, as JSON values."""
    return {
        **more,
        "block": job.block,
        "valid_share": job.valid_share,
        "sources": [asdict(source) for source in job.sources],
        "valid": [asdict(source) for source in job.valid],
        "tasks": {name: task.to_dict() for name, task in job.tasks.items()},
    }


def _summary(name: str, info: PackedInfo) -> str:
    sizes = f"{info.num_tokens:,} tokens, {info.num_targets:,} targets"
    return f"{name}: {info.num_rows:,} rows of {info.block}, {sizes}"
