"""What to train on: data, tasks and how they become rows; the same for a run and for a look ahead.

Made from a command's options by `cli_data.py`; `pipeline.py` and `preview.py` use it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.dataset import BuildPlan, Built, build
from model_store.training.errors import InvalidOption
from model_store.training.recipe import Source, check_tasks


@dataclass(frozen=True, slots=True)
class Material:
    """What to train on.

    Args:
        sources: What to learn from.
        tasks: By name; those that a source names must be there.
        valid: What to validate on; may be empty.
        valid_share: The share of `sources` kept for validation where `valid` is empty, from 0 to below 1;
            None chooses it.
        block: Tokens in a row; 0 chooses from the examples' lengths.
        is_loss_everywhere: Count the prompts' tokens in the loss, too; False counts the answers' only.
        base_tasks: Those of the model to begin with, by name.
        replay: The share of old work among the rows to learn from, from 0 to below 1.
        old: Old work to rehearse and to measure on; where it is empty, the model writes it itself.

    Raises:
        InvalidOption: A share is not legal.
    """

    sources: tuple[Source, ...]
    tasks: Mapping[str, Task] = field(default_factory=dict)
    valid: tuple[Source, ...] = ()
    valid_share: float | None = 0.0
    block: int = 0
    is_loss_everywhere: bool = False
    base_tasks: Mapping[str, Task] = field(default_factory=dict)
    replay: float = 0.0
    old: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        for option, share in (("--valid-share", self.valid_share), ("--replay", self.replay)):
            if share is not None and not 0 <= share < 1:
                raise InvalidOption(option, f"must be from 0 to below 1, not {share}")

    def with_old(self, num_rows: int) -> int:
        """How many rows there are once old work makes up its share of them."""
        return num_rows + num_old_rows(num_rows, self.replay)

    def plan(self, num_positions: int, seed: int) -> BuildPlan:
        """Say what the rows to learn from are made of.

        Args:
            num_positions: The model's.
            seed: Of every draw.

        Raises:
            InvalidOption: A source's task is not defined, or does not suit it.
        """
        check_tasks([*self.sources, *self.valid, *self.old], self.tasks)
        return BuildPlan(
            sources=self.sources,
            tasks=self.tasks,
            block=self.block,
            is_loss_everywhere=self.is_loss_everywhere,
            valid_share=0.0 if self.valid else self.valid_share,
            seed=seed,
            num_positions=num_positions,
        )

    def inputs(self) -> dict[str, Any]:
        """What of it decides a run, as JSON values."""
        return {
            "block": self.block,
            "valid_share": self.valid_share,
            "is_loss_everywhere": self.is_loss_everywhere,
            "sources": [asdict(source) for source in self.sources],
            "replay": self.replay,
            "old": [asdict(source) for source in self.old],
            "valid": [asdict(source) for source in self.valid],
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }


def num_old_rows(num_new: int, share: float) -> int:
    """How many rows of old work make up a share, from 0 to below 1, beside so many new ones."""
    return round(num_new * share / (1 - share))


def built_valid(
    material: Material,
    plan: BuildPlan,
    built: Built,
    tokenizer: Tokenizer,
    cache: Path,
    report: Callable[[str], None],
) -> Path:
    """Give the folder of the rows to validate on: those of `--valid`, or the share kept of what was built."""
    if not material.valid:
        return built.valid
    apart = build(
        replace(plan, sources=material.valid, block=built.block, valid_share=0.0), tokenizer, cache, report
    )
    for line in lines_on(apart):
        report(f"valid: {line}")
    if num_equal := built.num_equal(apart):
        report(
            f"VALID: {num_equal:,} OF THE ROWS OF --valid ARE LEARNED FROM, TOO: the validation loss looks "
            "better than it is"
        )
    return apart.train


def lines_on(built: Built) -> list[str]:
    """Say what the rows are: the block where it was chosen, how the validation data was drawn, counts."""
    chosen = [f"block {built.block}: {built.why}"] if built.why else []
    counts = ", ".join(f"{name}: {count:,}" for name, count in sorted(built.counts.items()))
    return [*chosen, *built.notes, counts]
