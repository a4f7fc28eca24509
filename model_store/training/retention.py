"""What the base model could do before, and whether it still can: its old work, rehearsed and measured.

Old work is given (`--replay-data`), or it is what the base itself writes (`base_writing.py`). The loss on the
latter says how far the new model has moved from the base; what that means for a task's quality only held-out
data of the task says. Rehearsing it keeps the new model near the base.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model_store.tokenizer import Tokenizer
from model_store.training.base_writing import TEXTS
from model_store.training.dataset import BuildPlan, build
from model_store.training.errors import InvalidOption
from model_store.training.material import num_old_rows
from model_store.training.packing import IGNORED, PackedInfo, Rows
from model_store.training.recipe import Source

MOST_FORGETTING = 0.05  # by so much a loss on old work may rise before it is said in capitals
MEASURED_SHARE = 0.25  # of old work that is learned from, too
_AT_ONCE = 8  # rows that are measured in a forward pass


@dataclass(frozen=True, slots=True)
class OldWork:
    """One kind of old work.

    Args:
        name: A task's name, or `text`.
        train: The folder of rows to learn from, where that is wanted.
        measured: Rows that the loss is measured on, never learned from.
        is_own: The base wrote it itself.
    """

    name: str
    train: Path
    measured: Rows
    is_own: bool = False


def old_work(
    plan: BuildPlan,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    cache: Path,
    is_rehearsed: bool,
    is_own: bool,
) -> tuple[OldWork, ...]:
    """Make rows of old work, by task.

    Args:
        plan: How; its sources do not count.
        sources: Old work.
        tokenizer: The model's.
        cache: For the rows.
        is_rehearsed: Keep a part of each kind for the measure alone; False measures on all of it.
        is_own: The base wrote it itself.

    Raises:
        StoreError: A file is wrong.
    """
    by_name: dict[str, list[Source]] = {}
    for source in sources:
        by_name.setdefault(source.task or TEXTS, []).append(source)
    made = []
    for name, mine in by_name.items():
        share = MEASURED_SHARE if is_rehearsed else 0.0
        apart = replace(plan, sources=tuple(mine), valid_share=share, is_loss_everywhere=False)
        built = build(apart, tokenizer, cache, lambda line: None)
        made.append(OldWork(name, built.train, Rows(built.valid if is_rehearsed else built.train), is_own))
    return tuple(made)


class Mixed(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """New rows and old ones, which make up a share.

    Args:
        new: All of them are learned from.
        old: As many rows as make the share are taken, from each kind in turn, again where they are too few.
        share: Of the rows, from 0 to below 1.

    Raises:
        InvalidOption: There is no old row.
    """

    def __init__(self, new: Rows, old: Sequence[Rows], share: float) -> None:
        self.new = new
        self.num_old = num_old_rows(len(new), share)
        self._epoch = 0
        self._kinds = [rows for rows in old if len(rows)]
        if self.num_old and not self._kinds:
            raise InvalidOption("--replay", "finds no old work to rehearse; give some with --replay-data")

    @property
    def info(self) -> PackedInfo:
        """That of the new rows."""
        return self.new.info

    @property
    def num_repeats(self) -> float:
        """How often an old row is seen in an epoch."""
        return self.num_old / max(1, sum(map(len, self._kinds)))

    def __len__(self) -> int:
        return len(self.new) + self.num_old

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        is_old = index >= len(self.new)
        row = self._old(index - len(self.new)) if is_old else self.new[index]
        return {**row, "is_old": torch.tensor(is_old)}

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch with other old rows than the one before; accelerate's data loader calls it."""
        self._epoch = epoch

    def _old(self, index: int) -> dict[str, torch.Tensor]:
        turn, kind = divmod(index, len(self._kinds))
        rows = self._kinds[kind]
        turn += self._epoch * math.ceil(self.num_old / len(self._kinds))
        return rows[turn % len(rows)]


def losses(model: Any, base: Any, work: Sequence[OldWork]) -> dict[str, float]:
    """Measure a model on old work: the mean loss of a token, in nats, by name.

    Args:
        model: A `LeanGPT2`, on any device.
        base: What it was made from, or the model itself: on what that wrote itself, each of its next tokens
            counts by how likely it is, and not only the one that was drawn. Not asked for other work.
        work: What is measured; kinds without a row are left out.
    """
    losses = {each.name: mean_loss(model, each.measured, base if each.is_own else None) for each in work}
    return {name: loss for name, loss in losses.items() if loss is not None}


def mean_loss(model: Any, rows: Rows, base: Any = None) -> float | None:
    """The mean loss of a token that counts in rows, in nats, or of what a base would write in its place; None
    where none counts.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(rows), _AT_ONCE):
            some = [rows[index] for index in range(first, min(first + _AT_ONCE, len(rows)))]
            batch = {name: torch.stack([row[name] for row in some]).to(device) for name in some[0]}
            is_wanted = batch["labels"][:, 1:] != IGNORED
            if not is_wanted.any():
                continue
            if base is None:
                total += float(model(**batch, num_items_in_batch=1).loss)
            else:
                given = batch["input_ids"], batch["position_ids"], is_wanted
                mine = model.log_probabilities(*given)
                theirs = mine if base is model else base.to(device).log_probabilities(*given)
                total -= float((theirs.exp() * mine).sum())
            count += int(is_wanted.sum())
    model.train(was_training)
    return total / count if count else None


def figures_of(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The losses before and after, for the manifest."""
    figures = {f"{name} loss before": round(loss, 4) for name, loss in before.items()}
    return figures | {f"{name} loss after": round(loss, 4) for name, loss in after.items()}


def forgotten(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """The kinds of old work, among those in `after`, whose loss rose beyond the bound."""
    return [name for name, loss in after.items() if loss > (1 + MOST_FORGETTING) * before[name]]


def told(before: Mapping[str, float], after: Mapping[str, float], replay: float = 0.0) -> list[str]:
    """Say, for each kind of old work, how the loss changed; in capitals where it rose beyond the bound.

    Args:
        before: the base's losses.
        after: the new model's.
        replay: the share of old work among the rows it learned from.
    """
    lines = []
    for name, old in before.items():
        change = after[name] / old - 1 if old else 0.0
        lines.append(
            f"old work, {name}: loss {old:.3f} before, {after[name]:.3f} after ({100 * change:+.1f} %)"
        )
    if names := forgotten(before, after):
        rehearsal = f"A LARGER --replay THAN {replay:g}" if replay else "--replay 0.3"
        lines.append(
            f"THE MODEL HAS FORGOTTEN: THE LOSS ON {', '.join(names).upper()} ROSE BY MORE THAN "
            f"{100 * MOST_FORGETTING:.0f} %; TRY {rehearsal}, A LOWER --learning-rate OR --lora-rank 8"
        )
    return lines
