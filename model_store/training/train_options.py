"""How to train: what is not about the data. `defaults.py` chooses what is left open, `train.py` does it."""

import math
from dataclasses import dataclass

from model_store.training.errors import InvalidOption

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "bf16", "fp32")
REPORTS = ("", "tensorboard", "wandb")
_COUNTS = (
    "batch_rows",
    "max_steps",
    "log_every",
    "eval_every",
    "save_every",
    "sample_every",
    "lora_rank",
)


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
        precision: `bf16` (autocast), `fp32`, or `auto` for bf16 where that is faster.
        is_compiled: Use torch.compile; needs a C++ compiler.
        shifted_share: The share of rows moved to drawn positions; see `packing.Rows`.
        prompt_weight: How much a prompt's token counts beside an answer's when answers are what is learned,
            from 0 (not at all) to below 1.
        log_every: Steps between points of the curve; 0 chooses a fiftieth of all steps.
        eval_every: Steps between validations; 0 chooses five times `log_every`. With an early stop it is
            rounded up to a multiple of `log_every`.
        save_every: Steps between checkpoints, rounded up to a multiple of `log_every`; 0 chooses ten times
            `log_every`. With an early stop each validation is followed by a checkpoint instead.
        keep: Checkpoints kept.
        patience: Stop after so many validations without a better loss and take the best checkpoint; 0 never
            stops; None chooses: 3 where a model goes on learning and there are rows to validate on, else 0.
        sample_every: Steps between sample texts; 0 chooses a fifth of all steps.
        report_to: Also send the curve to `tensorboard` or `wandb`, which must be installed; "" to neither.
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
    patience: int | None = None
    sample_every: int = 0
    report_to: str = ""
    lora_rank: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, legal in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in legal:
                raise InvalidOption(name, f"must be one of {', '.join(legal)}, not {getattr(self, name)!r}")
        if self.report_to not in REPORTS:
            raise InvalidOption("report_to", f"must be tensorboard or wandb, not {self.report_to!r}")
        for name in ("accumulate", "keep"):
            if getattr(self, name) < 1:
                raise InvalidOption(name, f"must be at least 1, not {getattr(self, name)}")
        for name in (*_COUNTS, "weight_decay", "clip", "learning_rate", "epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidOption(name, f"must be a number from 0, not {getattr(self, name)}")
        if self.patience is not None and self.patience < 0:
            raise InvalidOption("patience", f"must be a number from 0, not {self.patience}")
        for name in ("warmup_share", "shifted_share", "prompt_weight"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidOption(name, f"must be from 0 to below 1, not {getattr(self, name)}")
