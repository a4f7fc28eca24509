"""What every kernel self-check needs: a ragged batch to try, the comparison with torch, and the exception.

`cpu.self_check` asks it of the processor's kernels, `cuda.self_check` of a GPU's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.model.attention import ForwardBatch


class KernelMismatch(RuntimeError):
    """A kernel's result differs from the torch reference, or a row's from itself; the message says which."""


def ragged_batch(sequences: list[tuple[int, int]], block_size: int) -> ForwardBatch:
    """A batch of (cached tokens, new tokens) pairs, in blocks handed out from the last to the first."""
    needed = [-(-(cached + new) // block_size) for cached, new in sequences]
    free, tables = sum(needed), torch.zeros(len(sequences), max(needed), dtype=torch.int32)
    slots: list[int] = []
    positions: list[int] = []
    for row, (count, (cached, new)) in enumerate(zip(needed, sequences, strict=True)):
        table = list(range(free - 1, free - count - 1, -1))
        free -= count
        tables[row, :count] = torch.tensor(table)
        positions += range(cached, cached + new)
        slots += [table[p // block_size] * block_size + p % block_size for p in range(cached, cached + new)]
    starts = torch.tensor([0] + [new for _, new in sequences]).cumsum(0)
    return ForwardBatch(
        input_ids=torch.zeros(len(slots), dtype=torch.int64),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        query_starts=starts.int(),
        context_lens=torch.tensor([cached + new for cached, new in sequences], dtype=torch.int32),
        block_tables=tables,
        logit_rows=starts[1:] - 1,
        max_query_len=max(new for _, new in sequences),
    )


def compare(what: str, result: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise `KernelMismatch` unless all values are within `tolerance` of the largest expected one."""
    error = float((result.float() - expected.float()).abs().max())
    bound = tolerance * float(expected.abs().max())
    if not error <= bound:  # also when it is NaN
        raise KernelMismatch(f"{what}: differs from torch by {error:.3g}, allowed {bound:.3g}")
