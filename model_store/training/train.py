"""Trains on packed rows with transformers' Trainer: schedule, checkpoints, resume, curve, early stop.

`run` is the same for pretraining and fine-tuning; what differs is the model it is given and which tokens the
loss counts. Rows come from `dataset.py`, the model from `lean_gpt2.py`, and the
result leaves through `export.py`. Nothing is printed here but the progress bar.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_store.recipes.muon import has_bf16
from model_store.training.errors import Diverged, InvalidOption, MissingExtra
from model_store.training.packing import Rows

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "bf16", "fp32")
_COUNTS = ("batch_rows", "max_steps", "log_every", "eval_every", "save_every", "patience", "lora_rank")
_TRAINER_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train; what is not about the data.

    Args:
        batch_rows: Rows in one forward pass on one device; 0 chooses from the number of rows, at most 8.
        accumulate: Forward passes for one optimizer step.
        learning_rate: The peak; 0 chooses: 0.0002 to 0.00005 by the model's size, 0.001 for adapters and for
            new models.
        schedule: What follows the warm-up: `cosine` or `linear` decay to zero, or `constant`.
        warmup_share: The share of all steps in which the rate rises from zero, from 0 to below 1.
        epochs: Times through the rows, ignored where `max_steps` is given; 0 chooses: once for new models,
            else at least three times, and up to twenty where that makes fewer than 150 steps.
        max_steps: Optimizer steps; 0 for what `epochs` gives.
        weight_decay: Of matrices.
        clip: The largest norm of the gradient; 0 for no clipping.
        optimizer: `adamw`, or `muon` (Muon for the layers' matrices, AdamW for the rest).
        precision: `bf16` (autocast), `fp32`, or `auto` for bf16 where the processor or the GPU has it.
        is_compiled: Use torch.compile; needs a C++ compiler.
        shifted_share: The share of rows moved to drawn positions; see `packing.Rows`.
        prompt_weight: How much a prompt's token counts beside an answer's when answers are what is learned,
            from 0 (not at all) to below 1.
        log_every: Steps between points of the curve; 0 chooses a fiftieth of all steps.
        eval_every: Steps between validations; 0 chooses five times `log_every`.
        save_every: Steps between checkpoints, rounded up to a multiple of `log_every`, and of `eval_every`
            when there is an early stop; 0 chooses ten times `log_every`.
        keep: Checkpoints kept.
        patience: Stop after so many validations without a better loss and take the best checkpoint; 0 never
            stops.
        lora_rank: Train adapters of this rank instead of all weights; 0 trains all. They are merged on
            export.
        seed: Of the order of rows and of new weights.
    """

    batch_rows: int = 0
    accumulate: int = 1
    learning_rate: float = 0.0
    schedule: str = "cosine"
    warmup_share: float = 0.02
    epochs: float = 0.0
    max_steps: int = 0
    weight_decay: float = 0.05
    clip: float = 1.0
    optimizer: str = "adamw"
    precision: str = "auto"
    is_compiled: bool = False
    shifted_share: float = 0.0
    prompt_weight: float = 0.0
    log_every: int = 0
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2
    patience: int = 0
    lora_rank: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, legal in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in legal:
                raise InvalidOption(name, f"must be one of {', '.join(legal)}, not {getattr(self, name)!r}")
        for name in ("accumulate", "keep"):
            if getattr(self, name) < 1:
                raise InvalidOption(name, f"must be at least 1, not {getattr(self, name)}")
        for name in (*_COUNTS, "weight_decay", "clip", "learning_rate", "epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidOption(name, f"must be a number from 0, not {getattr(self, name)}")
        for name in ("warmup_share", "shifted_share", "prompt_weight"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidOption(name, f"must be from 0 to below 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to.

    Args:
        steps: Optimizer steps done.
        tokens: Tokens seen.
        loss: The last training loss of the curve; the mean of all steps where the run was too short for one.
        valid_loss: The last (with early stop: best) validation loss, or None without validation.
    """

    steps: int
    tokens: int
    loss: float
    valid_loss: float | None


def require_training_extra() -> None:
    """Refuse before anything is read when a package of the training extra is missing.

    Raises:
        MissingExtra: Names the package and the command that installs it.
    """
    from importlib.util import find_spec

    for module, package in (("accelerate", "accelerate"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise MissingExtra(package)


def run(model: Any, train: Rows, valid: Rows | None, out: Path, options: TrainOptions) -> RunResult:
    """Train `model` in place, going on from the newest whole checkpoint in `out` when there is one.

    Args:
        model: A `LeanGPT2`; with `lora_rank` its adapters are merged in at the end.
        train: Rows to learn from.
        valid: Rows for the validation loss, or None.
        out: The run's folder: checkpoints, `loss.csv`.
        options: How, with nothing left to choose.

    Raises:
        InvalidOption: There are fewer rows than one batch, or early stop without validation.
        Diverged: A loss or a weight is no finite number.
    """
    from model_store.training.curve import last_whole_checkpoint

    _check_rows(train, valid, options)
    trainer = _trainer(model, train, valid, out, options)
    checkpoint = last_whole_checkpoint(out / "checkpoints")
    mean = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).training_loss
    if options.lora_rank:
        trainer.model.merge_and_unload()
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise Diverged(trainer.state.global_step, options.learning_rate)
    return _result(trainer, train.info.block, options, mean)


def _check_rows(train: Rows, valid: Rows | None, options: TrainOptions) -> None:
    if len(train) < options.batch_rows:
        raise InvalidOption(
            "--batch-rows", f"is {options.batch_rows}, but the data gives only {len(train)} rows"
        )
    if options.patience and not valid:
        raise InvalidOption("--patience", "needs validation data: --valid or --valid-share")


def _trainer(model: Any, train: Rows, valid: Rows | None, out: Path, options: TrainOptions) -> Any:
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, Trainer

    from model_store.training.curve import BarCallback, CurveCallback, FiniteCallback, MarkCallback
    from model_store.training.lean_gpt2 import optimizer_for

    if options.is_compiled:
        model.compile_parts()
    if options.lora_rank:
        model = with_adapters(model, options.lora_rank)
    arguments = _arguments(train, valid, out, options)
    optimizer = optimizer_for(model, options.optimizer, options.learning_rate, options.weight_decay)
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=valid, optimizers=(optimizer, None))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    rows_per_step = options.batch_rows * options.accumulate * arguments.world_size
    trainer.add_callback(CurveCallback(out / "loss.csv", rows_per_step * train.info.block))
    trainer.add_callback(FiniteCallback())
    trainer.add_callback(MarkCallback())
    trainer.add_callback(BarCallback())
    if options.patience:
        trainer.add_callback(EarlyStoppingCallback(options.patience))
    return trainer


def _arguments(train: Rows, valid: Rows | None, out: Path, options: TrainOptions) -> Any:
    from transformers import TrainingArguments

    steps = num_steps(len(train), options)
    step = math.lcm(options.log_every, options.eval_every) if options.patience else options.log_every
    early = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=options.batch_rows,
        per_device_eval_batch_size=min(options.batch_rows, len(valid or train)),  # drop_last is for both
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        lr_scheduler_type=_TRAINER_SCHEDULES[options.schedule],
        warmup_steps=math.ceil(options.warmup_share * steps),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        max_grad_norm=options.clip,
        bf16=is_bf16(options.precision),
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if valid else "no",
        eval_steps=options.eval_every,
        save_steps=math.ceil(options.save_every / step) * step,
        save_total_limit=options.keep,
        prediction_loss_only=True,
        dataloader_drop_last=True,
        label_names=["labels"],
        report_to=[],
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
    return has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


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


def _result(trainer: Any, block: int, options: TrainOptions, mean: float) -> RunResult:
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    valid = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    best = min(valid, default=None) if options.patience else (valid[-1] if valid else None)
    rows = options.batch_rows * options.accumulate * trainer.args.world_size
    steps: int = trainer.state.global_step
    return RunResult(steps, steps * rows * block, losses[-1] if losses else mean, best)
