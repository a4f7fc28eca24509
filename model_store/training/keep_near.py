"""Takes back a part of what a model learned where rehearsal alone does not keep its old work.

Weights between a base's and those fine-tuned from it often do both well.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from model_store.training.packing import Rows
from model_store.training.retention import MOST_FORGETTING, OldWork, forgotten, losses, mean_loss

_SHARES = tuple(percent / 100 for percent in range(30, 100, 5))
MOST_MEASURES = len(_SHARES).bit_length()  # of old work, on the way to the share that is kept


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
    tuned = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    kept, first, end = None, 0, len(_SHARES)
    while first < end:  # a larger share forgets more, so the largest that may be kept is found by halves
        middle = (first + end) // 2
        _move(model, base, tuned, _SHARES[middle])
        # what rose is the quicker question
        if forgotten(before, losses(model, base, rising)) or forgotten(
            before, now := losses(model, base, work)
        ):
            end = middle
        else:
            kept, first = (_SHARES[middle], now), middle + 1
    if kept is None:
        _move(model, base, tuned, 1.0)
        report(
            f"nothing is taken back: even {100 * _SHARES[0]:.0f} % of what was learned makes some old "
            f"work worse by more than {100 * MOST_FORGETTING:.0f} %"
        )
        return after, None
    share, after = kept
    _move(model, base, tuned, share)
    valid_loss = mean_loss(model, valid) if valid else None
    cost = "" if learned is None else f"; validation loss {valid_loss:.3f} instead of {learned:.3f}"
    report(
        f"{100 * share:.0f} % of what was learned is kept, so that no old work is worse by more than "
        f"{100 * MOST_FORGETTING:.0f} %{cost}"
    )
    return after, valid_loss


@torch.no_grad()
def _move(model: Any, base: Any, tuned: Mapping[str, torch.Tensor], share: float) -> None:
    """Put a model's weights between the base's (0) and those it learned (1)."""
    old = dict(base.named_parameters())
    for name, weight in model.named_parameters():
        weight.copy_(torch.lerp(old[name].to(weight), tuned[name], share))
