"""Puts the GPU's forward pass together and explains memory that is not there; `loader` calls this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from service.engine.architecture import UnsupportedCheckpoint
from service.engine.backends.cuda.graphs import GraphedForward, GraphRecorder, plain_call
from service.engine.linear import Precision
from service.engine.model.attention import KVCache

if TYPE_CHECKING:
    from service.engine.model.gpt2 import GPT2

KV_SHARE = 0.8  # of the device memory left after loading, at most, for keys and values
GIB = 1 << 30


def checked(precision: Precision, device: str) -> str:
    """Try the Triton kernels on this device.

    Returns:
        One line for the log.

    Raises:
        Exception: whatever says that they cannot be used: no Triton, no compiler, a wrong result, int8.
    """
    if precision == "int8":
        raise ValueError("int8 has no GPU kernels")
    from service.engine.backends.cuda.self_check import self_check

    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    return self_check(dtype, torch.device(device))


def build_forward(model: GPT2, cache: KVCache, max_rows: int) -> GraphedForward:
    """The forward pass of a model with `backend="cuda"`, decode steps of up to `max_rows` rows recorded.

    Args:
        model: its layers are `CudaLinear`.
        cache: its last block belongs to no sequence.
        max_rows: most sequences that decode together.
    """
    from service.engine.backends.cuda.attention import CudaAttention  # Triton: only where it is used
    from service.engine.backends.cuda.forward import CudaForward

    architecture, device = model.architecture, torch.device(model.numerics.device)
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


@contextmanager
def one_line_without_memory(device: str) -> Iterator[None]:
    """Turn running out of device memory at start into one line that says what to do.

    Raises:
        UnsupportedCheckpoint: the device's memory does not suffice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UnsupportedCheckpoint(out_of_memory(*torch.cuda.mem_get_info(device))) from error


def out_of_memory(free_bytes: int, total_bytes: int) -> str:
    """The one line."""
    return (
        f"out of GPU memory at start: {free_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB are left; "
        "stop what else runs on it (nvidia-smi lists it), choose another one with CUDA_VISIBLE_DEVICES, "
        "or lower TEXTGEN_KV_CACHE_BYTES or TEXTGEN_MAX_RUNNING"
    )
