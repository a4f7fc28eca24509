"""The linear layer on a GPU: torch's own product, with weight, bias and activation within reach.

`forward.CudaForward` takes the pieces apart to fuse what stands between two products; called as a whole, a
layer follows the same `linear.Linear` protocol as every other. Needs no Triton.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.config import Precision
from service.engine.model.linear import find_activation, finish


class CudaLinear:
    """`F.linear` in float32 or bfloat16; sums are float32.

    Args:
        weight: (K, N) float32.
        bias: (N,) float32 or None.
        precision: "float32" or "bfloat16".
        activation: a name of `transformers.activations.ACT2FN`, or None.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, precision: Precision, activation: str | None
    ) -> None:
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.weight = weight.t().contiguous().to(self.dtype)  # (N, K)
        self.bias = None if bias is None else bias.float()
        self._short_bias = None if bias is None else bias.to(self.dtype)
        self.activation = find_activation(activation)

    def product(self, x: Tensor) -> Tensor:
        """x @ weight alone, (M, K) -> (M, N), both in `dtype`."""
        return F.linear(x, self.weight)

    def with_bias(self, x: Tensor) -> Tensor:
        """Product, bias and activation, (M, K) -> (M, N), both in `dtype`."""
        result = F.linear(x, self.weight, self._short_bias)
        return result if self.activation is None else self.activation(result)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """See `Linear`."""
        return finish(self.product(x.to(self.dtype)).float(), self.bias, self.activation, residual)
