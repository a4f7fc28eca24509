"""What a linear layer is: the protocol that every wing implements, and the arithmetic that all of them share.

A layer is packed once from a float32 weight and multiplied every step; it takes and gives float32 rows,
whatever precision it multiplies in. `backends.torch.linear` says in plain torch what the fast layers compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.devices import Device

Activation = Callable[[Tensor], Tensor]


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


class Packer(Protocol):
    """What packs weights for the processor that multiplies by them."""

    @property
    def device(self) -> Device:
        """Where weights, keys and values live."""
        ...

    def linear(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Linear:
        """Build the layer that multiplies by `weight`.

        Args:
            weight: (K, N) float32 on the device, GPT-2's Conv1D orientation. Not kept once it is packed.
            bias: (N,) float32 or None.
            activation: a name of `transformers.activations.ACT2FN`, or None.

        Raises:
            UnsupportedLinear: there is no such layer here.
        """
        ...


class UnsupportedLinear(ValueError):
    """The backend has no such precision or activation."""


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
