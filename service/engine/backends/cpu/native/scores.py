# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Log probabilities of a row, as far as a walk over it is needed; `draw.logprobs` does the rest.

The torch reference is `sampler.logprobs_of`.
"""

from __future__ import annotations

import numpy as np

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.functions import native
from service.engine.backends.cpu.native.scalars import load_float, load_int, store_float, store_int

_BANNED = np.float32(-np.inf)


@native
def strongest(row, width, count, ids, logits):
    """Write the `count` largest logits, falling, and their ids; of equal ones, the first.

    Args:
        count: at most `width`.
        ids, logits: addresses of int32 and float32.
    """
    if count == 0:
        return
    num_held, lowest = 0, _BANNED
    for at in range(0, width, 16):
        mask = vec.first_lanes(width - at)
        x = vec.where(mask, vec.load_floats_where(row + 4 * at, mask), vec.floats(_BANNED))
        if num_held == count and not vec.any_lane(vec.above(x, vec.floats(lowest))):
            continue
        for i in range(at, min(at + 16, width)):
            value = load_float(row + 4 * i)
            if num_held == count and not value > lowest:
                continue
            num_held = min(num_held + 1, count)
            _insert(ids, logits, num_held - 1, i, value)
            lowest = load_float(logits + 4 * (num_held - 1))


@native
def _insert(ids, logits, rank, token_id, value):
    """Put a logit among the larger ones before `rank`, whose own is lost."""
    while rank > 0 and load_float(logits + 4 * (rank - 1)) < value:
        store_float(logits + 4 * rank, load_float(logits + 4 * (rank - 1)))
        store_int(ids + 4 * rank, load_int(ids + 4 * (rank - 1)))
        rank -= 1
    store_float(logits + 4 * rank, value)
    store_int(ids + 4 * rank, np.int32(token_id))
