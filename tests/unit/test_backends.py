"""Which backend computes: the kernels where they pass their check on this very machine, else torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.engine.backend import Reference
from service.engine.backends import choose
from service.engine.backends.cpu.backend import CpuBackend
from service.engine.backends.kernel_check import KernelMismatch
from service.engine.backends.torch.backend import TorchBackend
from service.engine.config import EngineConfig


@pytest.mark.timeout(300)  # compiles after a change of the kernels
def test_the_kernels_of_this_processor_pass_their_check() -> None:
    told: list[str] = []
    backend = choose(EngineConfig(Path(), precision="bfloat16", report=told.append))
    assert isinstance(backend, CpuBackend), told
    assert "checked" in told[-1]


def test_kernels_that_disagree_with_torch_are_off_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def disagree(self: CpuBackend, reference: Reference) -> str:
        raise KernelMismatch("attention: differs from torch by 1, allowed 0.1")

    monkeypatch.setattr(CpuBackend, "self_check", disagree)
    told: list[str] = []
    backend = choose(EngineConfig(Path(), precision="int8", report=told.append))
    assert isinstance(backend, TorchBackend) and backend.precision == "int8"
    assert "slower" in told[-1] and "differs from torch by 1" in told[-1]


def test_a_gpu_that_must_be_deterministic_computes_in_exact_torch() -> None:
    told: list[str] = []
    backend = choose(EngineConfig(Path(), device="cuda", is_deterministic=True, report=told.append))
    assert isinstance(backend, TorchBackend) and backend.is_exact
    assert told == ["deterministic: torch computes on the GPU, in row buckets (slower)"]


def test_a_backend_that_is_named_is_taken() -> None:
    backend = choose(EngineConfig(Path(), backend="reference", precision="bfloat16", num_threads=3))
    assert isinstance(backend, TorchBackend) and not backend.is_exact and backend.num_threads == 3
