# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""What happens to rows between matrix products, fused in Triton: add bias and residual, then LayerNorm.

Each row is one program and sees no other. The torch reference stands beside the kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

Norm = tuple[Tensor, Tensor, float]  # weight (C,) float32, bias (C,) float32, epsilon


@triton.jit
def _add_norm(x, added, bias, weight, shift, out, epsilon, WIDTH: tl.constexpr, WIDE: tl.constexpr,
              ADDS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDE)
    inside = column < WIDTH
    at = row * WIDTH + column
    values = tl.load(x + at, mask=inside, other=0.0)
    if ADDS:
        values += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
        values += tl.load(bias + column, mask=inside, other=0.0)
        tl.store(x + at, values, mask=inside)
    centred = tl.where(inside, values - tl.sum(values, 0) / WIDTH, 0.0)
    spread = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + epsilon)
    scaled = centred * spread * tl.load(weight + column, mask=inside, other=0.0)
    result = scaled + tl.load(shift + column, mask=inside, other=0.0)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def add_norm(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    dtype: torch.dtype,
) -> Tensor:
    """x += added + bias, in place; then the LayerNorm of x.

    Args:
        x: (T, C) float32, contiguous; changed.
        added: (T, C) in any float type, contiguous, or None to leave x as it is.
        bias: (C,) float32, given with `added`.
        norm: weight, bias and epsilon.
        dtype: of the result.

    Returns:
        (T, C) in `dtype`.
    """
    out = torch.empty_like(x, dtype=dtype)
    rows, width = x.shape
    weight, shift, epsilon = norm
    adds = added is not None
    operands = (added, bias) if adds else (x, weight)  # never read where nothing is added
    wide = triton.next_power_of_2(width)
    if rows:
        _add_norm[(rows,)](
            x, *operands, weight, shift, out, epsilon, WIDTH=width, WIDE=wide, ADDS=adds, num_warps=4
        )
    return out


def add_norm_reference(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    dtype: torch.dtype,
) -> Tensor:
    """What `add_norm` computes, in torch."""
    if added is not None and bias is not None:
        x += added.float() + bias
    weight, shift, epsilon = norm
    return F.layer_norm(x, weight.shape, weight, shift, epsilon).to(dtype)
