"""Muon beside torch's, which computes in bfloat16 on every processor."""

from __future__ import annotations

import pytest
import torch

from model_store.recipes import muon
from model_store.recipes.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_the_weights_after_some_steps_are_those_of_torchs_muon(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    pair = [
        Muon([ours], 0.01, 0.05),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    way = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * way  # what bfloat16 rounds


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_precision_follows_the_hardware(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(muon, "has_bf16", lambda device: has_bf16)
    seen: list[torch.dtype] = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda x, *args, **kw: seen.append(x.dtype) or addmm(x, *args, **kw))
    assert orthogonal(torch.randn(4, 6)).dtype == torch.float32
    assert set(seen) == {dtype}
