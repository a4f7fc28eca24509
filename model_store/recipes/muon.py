"""Muon, which learns more from few tokens than AdamW: for the built-in model's pretraining."""

import math
import timeit
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

_MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients
_ITERATIONS = 5
_PRODUCTS = 7
_CLEARLY = 0.8  # of the time: no run of one machine is to differ from the next by chance


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for matrices.

    The update is that of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, which multiplies in
    bfloat16 everywhere: on a processor without such instructions that takes 30 times as long as in float32
    and longer than the rest of a step. Here the precision is the faster one.

    Args:
        matrices: Parameters with two dimensions.
        rate: The learning rate; the update is scaled to the size of AdamW's.
        weight_decay: The share of the weights, times the rate, that each step takes off.
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], rate: float, weight_decay: float) -> None:
        super().__init__(list(matrices), {"lr": rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; a closure is not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                momentum = state["momentum_buffer"].lerp_(weight.grad, 1 - _MOMENTUM)
                update = orthogonal(weight.grad.lerp(momentum, _MOMENTUM))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearly orthogonal matrix beside `matrix` (rows, columns): its singular values become about 1, by
    Newton and Schulz's iteration."""
    x = matrix.to(torch.bfloat16 if is_faster_in_bf16(matrix.device) else torch.float32)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


@cache
def is_faster_in_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32: measured on a processor, where having the
    instructions does not tell (AVX-512's without AMX took 1.5 times as long as float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return _product_s(torch.bfloat16) < _CLEARLY * _product_s(torch.float32)


def _product_s(dtype: torch.dtype) -> float:
    """Seconds that a product of a small model's layer takes: the best of some, on a shared processor."""
    left, right = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
    return min(timeit.repeat(lambda: left @ right, number=1, repeat=_PRODUCTS))


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that step together: Muon for hidden matrices, AdamW for embeddings and vectors.

    Args:
        matrices: Parameters with two dimensions.
        others: All other parameters but positions.
        positions: Position embeddings; they learn at a tenth of the rate, since copying rests on them.
        rate: One learning rate for both; Muon's update is scaled to the size of AdamW's.
        weight_decay: For the matrices.

    Source: Jordan et al. 2024, "Muon"; Liu et al. 2025, "Muon is Scalable for LLM Training" (the scaling).
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        positions: Iterable[torch.nn.Parameter],
        rate: float,
        weight_decay: float,
    ) -> None:
        self._muon = Muon(matrices, rate, weight_decay)
        slow = {"params": list(positions), "lr": rate / 10}
        groups: list[dict[str, Any]] = [{"params": list(others)}, slow]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        )
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": rate})
        self._share_groups()

    def _share_groups(self) -> None:
        """Let a scheduler that sets our groups' learning rates set those of both parts."""
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with both parts; a closure is not supported."""
        self._muon.step()
        self._adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._muon.zero_grad(set_to_none)
        self._adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()
