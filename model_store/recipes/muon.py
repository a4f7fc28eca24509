"""Muon, which learns more from few tokens than AdamW: for the built-in model's pretraining."""

from collections.abc import Iterable
from typing import Any

import torch


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
        self._muon = torch.optim.Muon(
            list(matrices), lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
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
        self._muon.step()  # type: ignore[no-untyped-call]
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
