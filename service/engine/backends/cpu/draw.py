"""Draws one id per row of logits on the kernels' threads; the kernel is `native.draw_task`.

The torch reference is `sampler.draw_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from service.engine.backends.cpu import kernels
from service.engine.backends.cpu.pool import pool
from service.engine.backends.cpu.records import CUT_BYTES, UNIT_BITS
from service.engine.model.sampler import min_p_offsets, temperatures_of
from service.engine.sequence import SamplingParams

_LINE = 64  # bytes: threads share no line of the cache


def draw_rows(
    logits: Tensor,
    indices: Sequence[int],
    params: Sequence[SamplingParams],
    draws: np.ndarray[Any, np.dtype[np.float64]],
) -> list[int]:
    """As `sampler.draw_rows`, on all threads of the kernels.

    Args:
        logits: (R, vocab) float32 on the CPU, contiguous.
        indices: the rows to draw for.
        params, draws: of each of them.
    """
    width = logits.shape[1]
    rows, ids = np.asarray(indices, np.int64), np.zeros(len(indices), np.int64)
    inverse, offsets = (1 / temperatures_of(params)).astype(np.float32), min_p_offsets(params)
    top_k = np.array([row.top_k if row.top_k < width else 0 for row in params], np.int64)
    top_p = _as_units([row.top_p for row in params])
    scaled = _as_units(draws)
    scratch_bytes = -(-(CUT_BYTES + 12 * width) // _LINE) * _LINE
    scratch = np.empty(pool().threads * scratch_bytes // 8, np.int64)
    logits = logits.contiguous()
    args = np.array(
        [logits.data_ptr(), 4 * width, len(rows), width]
        + [array.ctypes.data for array in (rows, inverse, offsets, top_k, top_p, scaled, ids, scratch)]
        + [scratch_bytes],
        np.int64,
    )
    pool().run(kernels.address("draw_task"), args)
    return [int(token_id) for token_id in ids]


def _as_units(shares: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers from 0 to 1 as whole multiples of 2^-53."""
    units: np.ndarray[Any, np.dtype[np.int64]] = (np.asarray(shares, np.float64) * 2.0**UNIT_BITS).astype(
        np.int64
    )
    return units
