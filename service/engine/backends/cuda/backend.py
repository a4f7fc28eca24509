"""A GPU's kernels behind the protocol of `engine.backend`. Triton is imported only where it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.backend import Declined, Reference
from service.engine.backends.cuda.graphs import GraphedForward, GraphRecorder, plain_call
from service.engine.backends.cuda.linear import CudaLinear
from service.engine.config import EngineConfig, Precision
from service.engine.container import usable_processors
from service.engine.devices import DEVICES, Device
from service.engine.model.attention import KVCache, cache_dtype
from service.engine.model.gpt2 import GPT2
from service.engine.model.linear import UnsupportedLinear
from service.engine.model.sampler import Sampler, TorchSampler


class CudaBackend:
    """Triton kernels between torch's matrix products; steps of decodes are replayed from CUDA graphs.

    Args:
        precision: float32 or bfloat16.
        device: a GPU, or the host under Triton's interpreter.
        num_threads: on the processor.

    Raises:
        UnsupportedLinear: int8 has no kernels here.
    """

    name = "cuda"
    layout: torch.device | None = None  # a whole step crosses to the device in one copy
    sampler: Sampler = TorchSampler()
    speculates = False  # a replayed step beats a longer eager one
    min_prefill_rows = 512  # an eager step costs about the same up to there
    num_scratch_blocks = 1  # padded rows of replayed steps write there

    def __init__(self, precision: Precision, device: Device, num_threads: int = 1) -> None:
        if precision == "int8":
            raise UnsupportedLinear("int8 has no GPU kernels")
        self.precision: Precision = precision
        self.device = device
        self.num_torch_threads = self.num_threads = num_threads

    @classmethod
    def for_config(cls, config: EngineConfig) -> CudaBackend:
        """bfloat16 unless the config says otherwise.

        Raises:
            Declined: a row's bits must not depend on its batch.
            UnsupportedLinear: see the class.
        """
        if config.is_deterministic:
            raise Declined("deterministic: torch computes on the GPU, in row buckets (slower)")
        num_threads = config.num_threads or usable_processors()
        return cls(config.precision or "bfloat16", DEVICES[config.device], num_threads)

    def self_check(self, reference: Reference) -> str:
        """See `FastBackend`."""
        from service.engine.backends.cuda.self_check import self_check

        return self_check(cache_dtype(self.precision), torch.device(self.device.name), reference)

    def linear(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> CudaLinear:
        """See `Packer`."""
        return CudaLinear(weight, bias, precision=self.precision, activation=activation)

    def forward(self, model: GPT2, cache: KVCache, max_rows: int) -> GraphedForward:
        """See `Backend`: decode steps of up to `max_rows` rows are recorded."""
        from service.engine.backends.cuda.attention import CudaAttention
        from service.engine.backends.cuda.forward import CudaForward

        architecture, device = model.architecture, torch.device(self.device.name)
        attention = CudaAttention(cache, architecture.attention_scales, architecture.n_positions)
        forward = GraphedForward(
            CudaForward(model, attention),
            device,
            max_blocks=-(-architecture.n_positions // cache.block_size),
            scratch_block=cache.k.shape[1] - 1,
            block_size=cache.block_size,
            record=GraphRecorder() if device.type == "cuda" else plain_call,
        )
        if device.type == "cuda":
            forward.prepare(max_rows)
        return forward
