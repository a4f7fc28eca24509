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


@pytest.mark.parametrize(("is_faster", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_update_is_computed_in_the_faster_precision(
    monkeypatch: pytest.MonkeyPatch, is_faster: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(muon, "is_faster_in_bf16", lambda device: is_faster)
    seen: list[torch.dtype] = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda x, *args, **kw: seen.append(x.dtype) or addmm(x, *args, **kw))
    assert orthogonal(torch.randn(4, 6)).dtype == torch.float32
    assert set(seen) == {dtype}


@pytest.mark.parametrize(("bf16_s", "is_faster"), [(0.5, True), (0.9, False), (1.5, False)])
def test_bfloat16_is_chosen_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, bf16_s: float, is_faster: bool
) -> None:
    muon.is_faster_in_bf16.cache_clear()
    monkeypatch.setattr(muon, "_product_s", {torch.bfloat16: bf16_s, torch.float32: 1.0}.get)
    assert muon.is_faster_in_bf16(torch.device("cpu")) == is_faster
    muon.is_faster_in_bf16.cache_clear()
