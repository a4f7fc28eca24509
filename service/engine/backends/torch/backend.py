"""Plain torch behind the protocol of `engine.backend`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from service.engine.backends.torch.attention import ReferenceAttention
from service.engine.backends.torch.linear import pack_linear
from service.engine.config import EngineConfig, Precision
from service.engine.container import usable_processors
from service.engine.devices import DEVICES, Device
from service.engine.model.attention import Forward, KVCache
from service.engine.model.gpt2 import GPT2
from service.engine.model.linear import Linear
from service.engine.model.sampler import Sampler, TorchSampler


class TorchBackend:
    """The reference at one precision on one device.

    Args:
        precision: of the weights.
        device: where it computes.
        is_exact: whether a row's bits do not depend on its batch, at some cost.
        num_threads: on the processor.
    """

    name = "reference"
    speculates = True
    min_prefill_rows = 16
    num_scratch_blocks = 0
    sampler: Sampler = TorchSampler()

    def __init__(
        self,
        precision: Precision,
        device: Device = DEVICES["cpu"],
        *,
        is_exact: bool = False,
        num_threads: int = 1,
    ) -> None:
        self.precision: Precision = precision
        self.device = device
        self.layout = None if device.name == "cpu" else torch.device(device.name)
        self.is_exact = is_exact
        self.num_torch_threads = self.num_threads = num_threads

    @classmethod
    def for_config(cls, config: EngineConfig) -> TorchBackend:
        """bfloat16 unless the config says otherwise, or float32 on a processor that cannot multiply bfloat16.
        float32 on the processor is always exact.
        """
        is_on_host = config.device == "cpu"
        is_slow = is_on_host and not torch.cpu._is_avx512_bf16_supported()
        precision = config.precision or ("float32" if is_slow else "bfloat16")
        is_exact = config.is_deterministic or (is_on_host and precision == "float32")
        num_threads = config.num_threads or usable_processors()
        return cls(precision, DEVICES[config.device], is_exact=is_exact, num_threads=num_threads)

    def linear(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Linear:
        """See `Packer`."""
        return pack_linear(
            weight, bias, precision=self.precision, activation=activation, is_deterministic=self.is_exact
        )

    def attention(self, cache: KVCache, scales: Sequence[float]) -> ReferenceAttention:
        """See `Reference`."""
        return ReferenceAttention(cache, scales, is_exact=self.is_exact)

    def forward(self, model: GPT2, cache: KVCache, max_rows: int) -> Forward:
        """See `Backend`: layer by layer."""
        return partial(model.forward, attention=self.attention(cache, model.architecture.attention_scales))
