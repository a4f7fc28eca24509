"""The processor's kernels behind the protocol of `engine.backend`. Making one loads or compiles them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from service.engine.backend import Reference
from service.engine.backends.cpu import kernels, self_check
from service.engine.backends.cpu.attention import CpuAttention
from service.engine.backends.cpu.draw import CpuSampler
from service.engine.backends.cpu.forward import FusedForward, can_fuse
from service.engine.backends.cpu.linear import CpuLinear
from service.engine.backends.cpu.pool import pool, set_threads
from service.engine.config import EngineConfig, Precision
from service.engine.devices import DEVICES
from service.engine.model.attention import Forward, KVCache
from service.engine.model.gpt2 import GPT2
from service.engine.model.sampler import Sampler


class CpuBackend:
    """Compiled kernels on the process's own threads; a row's bits never depend on its batch.

    Args:
        precision: of the weights; bfloat16 is widened in registers, so that it is fast on any processor.
        num_threads: of all kernels from now on; None for one for each processor this process may use.
    """

    name = "cpu"
    device = DEVICES["cpu"]
    layout: torch.device | None = None
    speculates = True
    min_prefill_rows = 16
    num_scratch_blocks = 0
    num_torch_threads = 1  # two pools would fight over the cores

    def __init__(self, precision: Precision, num_threads: int | None = None) -> None:
        self.precision: Precision = precision
        self.sampler: Sampler = CpuSampler()
        set_threads(num_threads)

    @classmethod
    def for_config(cls, config: EngineConfig) -> CpuBackend:
        """bfloat16 unless the config says otherwise; tells if the next start has to compile again."""
        if complaint := kernels.load().complaint:
            config.warn(complaint)
        return cls(config.precision or "bfloat16", config.num_threads or None)

    @property
    def num_threads(self) -> int:
        """See `Backend`."""
        return pool().threads

    def self_check(self, reference: Reference) -> str:
        """See `FastBackend`."""
        return self_check.self_check(self.precision, reference)

    def linear(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> CpuLinear:
        """See `Packer`."""
        return CpuLinear(weight, bias, precision=self.precision, activation=activation)

    def forward(self, model: GPT2, cache: KVCache, max_rows: int) -> Forward:
        """See `Backend`: in one native call where the kernels can do all of it, else layer by layer."""
        architecture = model.architecture
        attention = CpuAttention(cache, architecture.attention_scales, max_context=architecture.n_positions)
        if can_fuse(model, attention):
            return FusedForward(model, attention)
        return partial(model.forward, attention=attention)
