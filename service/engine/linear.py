"""Weights packed once, multiplied every step: the linear layer of each precision and backend.

`pack_linear` turns a float32 weight into a callable that suits the backend. The reference backend here is
plain torch on any device and says what the fast kernels compute; the fast CPU layer is in
`backends.cpu.linear`. Every layer takes and gives float32 rows, whatever precision it multiplies in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["float32", "bfloat16", "int8"]
Backend = Literal["reference", "cpu", "cuda"]
Activation = Callable[[Tensor], Tensor]

ROW_BUCKET = (
    32  # rows of every call in deterministic mode: a library may sum in another order at another count
)


class Linear(Protocol):
    """x @ weight + bias, then the activation, then the residual."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the layer to every row.

        Args:
            x: (M, K) float32, contiguous.
            residual: (M, N) float32, added last; may not alias the result.

        Returns:
            (M, N) float32.
        """
        ...


class UnsupportedLinear(ValueError):
    """The backend has no such precision or activation on this machine."""


def auto_precision(device: str = "cpu", backend: Backend | None = None) -> Precision:
    """bfloat16, which halves what is read for each token, except where torch would be slow with it.

    Args:
        device: "cpu" or "cuda".
        backend: what multiplies. The fast CPU kernels widen bfloat16 in registers on any processor, torch
            needs one that multiplies it natively.
    """
    is_slow = device == "cpu" and backend == "reference" and not torch.cpu._is_avx512_bf16_supported()
    return "float32" if is_slow else "bfloat16"


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    precision: Precision,
    activation: str | None = None,
    backend: Backend = "reference",
    deterministic: bool = False,
) -> Linear:
    """Build the layer that multiplies by `weight`.

    Args:
        weight: (K, N) float32, GPT-2's Conv1D orientation. Not kept where a packed copy is made.
        bias: (N,) float32 or None.
        precision: what the multiplication runs in; sums are float32 or exact integers.
        activation: a name of `transformers.activations.ACT2FN`, or None.
        backend: "reference" is torch on the weight's device; "cpu" the fast kernels; "cuda" what the fused
            forward pass on a GPU is made of.
        deterministic: reference only: run in buckets of `ROW_BUCKET` rows, so that a row's bits do not depend
            on how many rows come with it. The fast CPU kernels have that property anyway.

    Raises:
        UnsupportedLinear: the backend cannot do this.
    """
    if backend == "cpu":
        from service.engine.backends.cpu.linear import CpuLinear  # compiles: only where it is used

        return CpuLinear(weight, bias, precision=precision, activation=activation)
    if backend == "cuda":
        from service.engine.backends.cuda.linear import CudaLinear

        return CudaLinear(weight, bias, precision=precision, activation=activation)
    if precision == "int8":
        return Int8Reference(weight, bias, activation=activation)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    return FloatReference(weight, bias, dtype=dtype, activation=activation, deterministic=deterministic)


class FloatReference:
    """`F.linear` in one float type."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        activation: str | None,
        deterministic: bool,
    ) -> None:
        self._weight = weight.t().contiguous().to(dtype)  # (N, K)
        self._bias = None if bias is None else bias.float()
        self._activation = find_activation(activation)
        self._deterministic = deterministic

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x.to(self._weight.dtype)
        product = self._in_buckets(x) if self._deterministic else F.linear(x, self._weight)  # (M, N)
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


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric codes per output channel.

    Args:
        weight: (K, N) float32.

    Returns:
        codes (K, N) int8 in [-127, 127]; scale (N,) float32.
    """
    scale = (weight.float().abs().amax(0) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), scale


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unsigned codes with one scale and zero point per row, so that x is about (codes - zero) * scale.

    Args:
        x: (M, K) float32.

    Returns:
        codes (M, K) int32 in [0, 255]; scale (M,) float32; zero (M,) int32 in [0, 255].
    """
    low, high = x.amin(1).clamp_max(0.0), x.amax(1).clamp_min(0.0)
    span = (high - low).clamp_min(1e-30)  # an all-zero row
    inverse = 255.0 / span
    zero = (-low * inverse).round()
    codes = ((x * inverse[:, None]).round() + zero[:, None]).clamp(0, 255)
    return codes.int(), span * (1.0 / 255.0), zero.int()


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """(M, K) int8 times (K, N) int8 in int32."""
    if a.device.type == "cpu":
        return torch._int_mm(a, b)
    return (a.double() @ b.double()).int()  # exact: every sum stays far below 2**53


def finish(
    product: Tensor, bias: Tensor | None, activation: Activation | None, residual: Tensor | None
) -> Tensor:
    """Bias, activation and residual, in that order, in float32."""
    if bias is not None:
        product = product + bias
    if activation is not None:
        product = activation(product)
    return product if residual is None else product + residual


def find_activation(name: str | None) -> Activation | None:
    """The function transformers knows by this name.

    Raises:
        UnsupportedLinear: there is none.
    """
    if name is None or name == "linear":
        return None
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return lambda x: F.gelu(x, approximate="tanh")
    if name == "relu":
        return F.relu
    from transformers.activations import ACT2FN  # slow to import, and rarely needed

    if name not in ACT2FN:
        raise UnsupportedLinear(
            f"activation_function {name!r} is unknown; known: {', '.join(sorted(ACT2FN))}"
        )
    function: Activation = ACT2FN[name]
    return function
