"""Takes back a part of what a model learned where rehearsal alone does not keep its old work.

Weights between a base's and those fine-tuned from it often do both well.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from model_store.training.packing import Rows
from model_store.training.retention import MOST_FORGETTING, OldWork, forgotten, losses, mean_loss

_SHARES = tuple(percent / 100 for percent in range(95, 25, -5))


def keep_near(
    model: Any,
    base: Any,
    work: Sequence[OldWork],
    before: Mapping[str, float],
    valid: Rows | None,
    report: Callable[[str], None],
) -> tuple[dict[str, float], float | None]:
    """Keep the largest share of what was learned with which no loss on old work rises beyond the bound.

    Args:
        model: What was trained; its weights are moved towards the base's. Where no share is small enough,
            they stay.
        base: The model that it was made from.
        work: What is measured.
        before: The base's losses on it.
        valid: Rows to measure what was learned on.
        report: Gets a line where something was taken back, or would have to be.

    Returns:
        The losses on old work, and on `valid` where it was measured anew.
    """
    after = losses(model, base, work)
    names = forgotten(before, after)
    if not names:
        return after, None
    rising = [each for each in work if each.name in names]
    learned = mean_loss(model, valid) if valid else None
    with torch.no_grad():
        tuned = {name: weight.clone() for name, weight in model.named_parameters()}
        old = dict(base.named_parameters())
        for share in _SHARES:
            for name, weight in model.named_parameters():
                weight.copy_(torch.lerp(old[name].to(weight), tuned[name], share))
            if forgotten(before, losses(model, base, rising)):  # the quicker question
                continue
            now = losses(model, base, work)
            if not forgotten(before, now):
                break
        else:
            for name, weight in model.named_parameters():
                weight.copy_(tuned[name])
            report(
                f"nothing is taken back: even {100 * _SHARES[-1]:.0f} % of what was learned makes some old "
                f"work worse by more than {100 * MOST_FORGETTING:.0f} %"
            )
            return after, None
    valid_loss = mean_loss(model, valid) if valid else None
    cost = "" if learned is None else f"; validation loss {valid_loss:.3f} instead of {learned:.3f}"
    report(
        f"{100 * share:.0f} % of what was learned is kept, so that no old work is worse by more than "
        f"{100 * MOST_FORGETTING:.0f} %{cost}"
    )
    return now, valid_loss
