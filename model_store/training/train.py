"""Trains on packed rows with transformers' Trainer: schedule, checkpoints, resume, curve, early stop.

`run` is the same for pretraining and fine-tuning; what differs is the model it is given and which tokens the
loss counts. Rows come from `dataset.py`, the model from `lean_gpt2.py`, and the
result leaves through `export.py`; what a person sees of it is in `watching.py`.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from model_store.recipes.muon import is_faster_in_bf16
from model_store.tokenizer import Tokenizer
from model_store.training.disk import checkpoint_bytes, told_when_full
from model_store.training.errors import Diverged, InvalidOption, MissingExtra
from model_store.training.packing import PackedInfo, Rows
from model_store.training.train_options import TrainOptions

_TRAINER_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to.

    Args:
        steps: Optimizer steps done.
        tokens: Tokens seen.
        loss: The last training loss of the curve; the mean of all steps where the run was too short for one;
            None where that was lost with a process that died after the last step.
        valid_loss: The last (with early stop: best) validation loss, or None without validation.
    """

    steps: int
    tokens: int
    loss: float | None
    valid_loss: float | None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep warnings and bars of the libraries that train from people who can do nothing about them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for name in ("transformers", "torch", "accelerate", "peft"):
                warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
            yield
    finally:
        logging.set_verbosity(before)


def require_training_extra(report_to: str = "") -> None:
    """Refuse before anything is read when a package of the training extra, or one to report to, is missing.

    Raises:
        MissingExtra: Names the package and the command that installs it.
    """
    from importlib.util import find_spec

    for module, package in (("accelerate", "accelerate"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise MissingExtra(package)
    if report_to and find_spec(report_to) is None:
        raise InvalidOption(
            "--report-to", f"{report_to} is not installed; run: pip install {report_to}, or leave it out"
        )


class Learned(Protocol):
    """Rows to learn from: `packing.Rows`, or new and old ones mixed."""

    @property
    def info(self) -> PackedInfo: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told of a run while it goes.

    Args:
        tokenizer: The model's, for sample texts.
        prompts: Rows that these begin with.
        report: Gets lines for people.
    """

    tokenizer: Tokenizer
    prompts: Rows
    report: Callable[[str], None]


def run(
    model: Any, train: Learned, valid: Rows | None, out: Path, options: TrainOptions, watcher: Watcher
) -> RunResult:
    """Train `model` in place, going on from the newest whole checkpoint in `out` when there is one.

    Args:
        model: A `LeanGPT2`; with `lora_rank` its adapters are merged in at the end.
        train: Rows to learn from.
        valid: Rows for the validation loss, or None.
        out: The run's folder: checkpoints, `loss.csv`.
        options: How, with nothing left to choose.
        watcher: Is told.

    Raises:
        DiskFull: A checkpoint could not be written.
        InvalidOption: There are fewer rows than one batch, or early stop without validation.
        Diverged: A loss or a weight is no finite number.
    """
    from model_store.training.curve import last_whole_checkpoint, take_up

    _check_rows(train, valid, options)
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    is_over = checkpoint is not None and take_up(checkpoint)
    with quiet_libraries(), told_when_full(out, checkpoint_bytes(model, options)):
        trainer = _trainer(model, train, valid, out, options, watcher)
        if checkpoint is not None and is_over:  # the Trainer would take one more step
            trainer.load(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if options.patience:
        watcher.report(_said_of_the_best(trainer.state, is_rehearsed=not isinstance(train, Rows)))
    if options.lora_rank:
        trainer.model.merge_and_unload()
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise Diverged(trainer.state.global_step, options.learning_rate)
    return _result(trainer, train.info.block, options)


def _check_rows(train: Learned, valid: Rows | None, options: TrainOptions) -> None:
    if len(train) < options.batch_rows:
        raise InvalidOption(
            "--batch-rows", f"is {options.batch_rows}, but the data gives only {len(train)} rows"
        )
    if options.patience and not valid:
        raise InvalidOption("--patience", "needs validation data: --valid or --valid-share")


def _trainer(
    model: Any, train: Learned, valid: Rows | None, out: Path, options: TrainOptions, watcher: Watcher
) -> Any:
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

    from model_store.training.curve import CurveCallback, FiniteCallback, LastCallback, MarkCallback
    from model_store.training.lean_gpt2 import optimizer_for
    from model_store.training.watching import SampleCallback, progress
    from model_store.training.whole_trainer import WholeTrainer

    model.suit(train.info.block)
    if options.is_compiled:
        model.compile_parts()
    if options.lora_rank:
        model = with_adapters(model, options.lora_rank)
    arguments = _arguments(train, valid, out, options)
    optimizer = optimizer_for(model, options.optimizer, options.learning_rate, options.weight_decay)
    trainer = WholeTrainer(
        model, arguments, train_dataset=train, eval_dataset=valid, optimizers=(optimizer, None)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    rows_per_step = options.batch_rows * options.accumulate * arguments.world_size
    tokens_per_step = rows_per_step * train.info.block
    trainer.add_callback(CurveCallback(out / "loss.csv", tokens_per_step))
    trainer.add_callback(FiniteCallback())
    trainer.add_callback(MarkCallback())
    trainer.add_callback(progress(tokens_per_step, watcher.report))
    trainer.add_callback(
        SampleCallback(watcher.prompts, watcher.tokenizer, options.sample_every, watcher.report)
    )
    if valid:
        trainer.add_callback(LastCallback())
    if options.patience:
        trainer.add_callback(EarlyStoppingCallback(options.patience))
    return trainer


def _arguments(train: Learned, valid: Rows | None, out: Path, options: TrainOptions) -> Any:
    from transformers import TrainingArguments

    steps = num_steps(len(train), options)
    early = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=options.batch_rows,
        per_device_eval_batch_size=options.batch_rows,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        lr_scheduler_type=_TRAINER_SCHEDULES[options.schedule],
        warmup_steps=math.ceil(options.warmup_share * steps),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        max_grad_norm=options.clip,
        bf16=is_bf16(options.precision),
        use_cpu=not torch.accelerator.is_available(),
        ddp_find_unused_parameters=False,
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if valid else "no",
        eval_steps=options.eval_every,
        save_steps=math.ceil(options.save_every / options.log_every) * options.log_every,
        save_total_limit=options.keep,
        prediction_loss_only=True,
        dataloader_drop_last=True,
        label_names=["labels"],
        report_to=[options.report_to] if options.report_to else [],
        seed=options.seed,
        **(early if options.patience else {}),
    )


def num_steps(num_rows: int, options: TrainOptions) -> int:
    """Say how many optimizer steps a run on one device takes."""
    if options.max_steps:
        return options.max_steps
    return math.ceil(options.epochs * (num_rows // (options.batch_rows * options.accumulate)))


def is_bf16(precision: str) -> bool:
    """Say whether a run of a precision computes in bfloat16 here."""
    if precision != "auto":
        return precision == "bf16"
    return is_faster_in_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def with_adapters(model: Any, rank: int) -> Any:
    """Give a model with LoRA adapters, which alone are trained.

    Raises:
        MissingExtra: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise MissingExtra("peft") from error
    targets = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, fan_in_fan_out=True)
    return get_peft_model(model, config)


def _said_of_the_best(state: Any, is_rehearsed: bool) -> str:
    """Which checkpoint an early stop came to."""
    if not state.best_global_step:
        return "the run was too short to validate; the model is that of its last step"
    end = "stopped" if state.global_step < state.max_steps else "ended"
    what = "the best validation loss on the new data" if is_rehearsed else "the best validation loss"
    more = "; it was still falling, so more --epochs may do better"
    return (
        f"{end} after step {state.global_step:,} of {state.max_steps:,}; the model is that of step "
        f"{state.best_global_step:,}, {what} ({state.best_metric:.3f})"
        f"{more if state.best_global_step == state.max_steps else ''}"
    )


def _result(trainer: Any, block: int, options: TrainOptions) -> RunResult:
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    means = [entry["train_loss"] for entry in history if "train_loss" in entry]
    valid = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    best = min(valid, default=None) if options.patience else (valid[-1] if valid else None)
    rows = options.batch_rows * options.accumulate * trainer.args.world_size
    steps: int = trainer.state.global_step
    return RunResult(steps, steps * rows * block, (losses or means or [None])[-1], best)
