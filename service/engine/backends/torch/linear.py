"""The linear layer of each precision in plain torch, on any device: what the fast layers are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.config import Precision
from service.engine.model.linear import Linear, find_activation, finish, quantise_rows, quantise_weight

# rows of every product in deterministic mode: a library may sum in another order at another count
ROW_BUCKET = 32


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    precision: Precision,
    activation: str | None = None,
    is_deterministic: bool = False,
) -> Linear:
    """Build the layer that multiplies by `weight`; see `Packer.linear`.

    Args:
        weight: (K, N) float32.
        bias: (N,) float32 or None.
        precision: what the multiplication runs in; sums are float32 or exact integers.
        activation: a name of `transformers.activations.ACT2FN`, or None.
        is_deterministic: multiply in buckets of `ROW_BUCKET` rows, so that a row's bits do not depend on how
            many rows come with it. int8 has that property anyway.

    Raises:
        UnsupportedLinear: the activation is unknown.
    """
    if precision == "int8":
        return Int8Reference(weight, bias, activation=activation)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    return FloatReference(weight, bias, dtype=dtype, activation=activation, is_deterministic=is_deterministic)


class FloatReference:
    """`F.linear` in one float type."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        activation: str | None,
        is_deterministic: bool,
    ) -> None:
        self._weight = torch.empty(weight.t().shape, dtype=dtype, device=weight.device)  # (N, K)
        self._weight.copy_(weight.t())
        self._bias = None if bias is None else bias.float()
        self._activation = find_activation(activation)
        self._is_deterministic = is_deterministic

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x.to(self._weight.dtype)
        product = self._in_buckets(x) if self._is_deterministic else F.linear(x, self._weight)  # (M, N)
        return finish(product.float(), self._bias, self._activation, residual)

    def _in_buckets(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        padded = F.pad(x, (0, 0, 0, -rows % ROW_BUCKET))
        parts = [F.linear(part, self._weight) for part in torch.split(padded, ROW_BUCKET)]
        return torch.cat(parts)[:rows]


class Int8Reference:
    """Eight-bit weights and activations with exact integer sums; a row's result depends on that row only.

    Weights are symmetric with one scale per output channel. A row of activations gets its own scale and zero
    point, found from that row alone; the zero point costs one column sum per channel, precomputed here.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, activation: str | None) -> None:
        quantised, self._scale = quantise_weight(weight)
        self._weight = quantised  # (K, N) int8
        self._column_sum = quantised.int().sum(0)  # (N,)
        self._bias = None if bias is None else bias.float()
        self._activation = find_activation(activation)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        codes, scale, zero = quantise_rows(x)
        shifted = (codes - 128).to(torch.int8)  # the library multiplies signed by signed
        sums = exact_matmul(shifted, self._weight) + (128 - zero)[:, None] * self._column_sum
        product = sums.float() * (scale[:, None] * self._scale)
        return finish(product, self._bias, self._activation, residual)


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """(M, K) int8 times (K, N) int8 in int32."""
    if a.device.type == "cpu":
        return torch._int_mm(a, b)
    return (a.double() @ b.double()).int()  # exact: every sum stays far below 2**53
