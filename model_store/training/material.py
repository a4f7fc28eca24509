"""What to train on: data, tasks and how they become rows; the same for a run and for a look ahead.

Made from a command's options by `cli_data.py`; `pipeline.py` and `preview.py` use it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from model_store.task import Task
from model_store.training.dataset import BuildPlan
from model_store.training.recipe import Source, check_tasks


@dataclass(frozen=True, slots=True)
class Material:
    """What to train on.

    Args:
        sources: What to learn from.
        tasks: By name; those that a source names must be there.
        valid: What to validate on; may be empty.
        valid_share: The share of `sources` kept for validation where `valid` is empty, from 0 to below 1.
        block: Tokens in a row; 0 chooses from the examples' lengths.
        is_loss_everywhere: Count the prompts' tokens in the loss, too; False counts the answers' only.
    """

    sources: tuple[Source, ...]
    tasks: Mapping[str, Task] = field(default_factory=dict)
    valid: tuple[Source, ...] = ()
    valid_share: float = 0.0
    block: int = 0
    is_loss_everywhere: bool = False

    def plan(self, num_positions: int, seed: int) -> BuildPlan:
        """Say what the rows to learn from are made of.

        Args:
            num_positions: The model's.
            seed: Of every draw.

        Raises:
            InvalidOption: A source's task is not defined, or does not suit it.
        """
        check_tasks([*self.sources, *self.valid], self.tasks)
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
            "valid": [asdict(source) for source in self.valid],
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }
