"""Whether the Triton kernels agree with torch on the device they run on; asked once, at start-up.

Small random batches go through the kernels and through the reference that they stand for, which is handed in.
The caller falls back to torch, and says so, when they disagree.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from service.engine.backend import Reference
from service.engine.backends.cuda.attention import CudaAttention
from service.engine.backends.cuda.rows import add_norm, add_norm_reference
from service.engine.backends.kernel_check import compare, ragged_batch
from service.engine.model.attention import ForwardBatch, KVCache

# cached and new tokens: mixed, decodes
_SEQUENCES = ([(20, 1), (0, 7), (150, 19)], [(3, 1), (128, 1), (300, 1)])
_BLOCK_SIZE = 16


def self_check(dtype: torch.dtype, device: torch.device, reference: Reference) -> str:
    """Compare attention and add+norm with torch.

    Args:
        dtype: float32 or bfloat16.
        device: a GPU, or the CPU under Triton's interpreter.
        reference: exact attention on that device.

    Returns:
        One line for the log.

    Raises:
        KernelMismatch: they disagree.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for sequences in _SEQUENCES:
        check_attention(sequences, 64, dtype, device, tolerance, generator, reference)
    check_rows(100, dtype, device, tolerance, generator)
    return f"Triton kernels agree with torch in {dtype}, checked in {time.perf_counter() - started:.2f} s"


def check_attention(
    sequences: list[tuple[int, int]],
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    tolerance: float,
    generator: torch.Generator,
    reference: Reference,
) -> None:
    """A ragged batch against the reference in float32, the cache included."""
    batch = move(ragged_batch(sequences, _BLOCK_SIZE), device)
    heads, blocks = 3, int(batch.block_tables.max()) + 1
    shape = (2, blocks, heads, _BLOCK_SIZE, head_dim)
    content = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]
    fast, slow = (KVCache(*(c.clone().to(device) for c in content)) for _ in range(2))
    qkv = torch.randn(batch.slots.shape[0], 3 * heads * head_dim, generator=generator).to(device, dtype)
    result = CudaAttention(fast, [0.1, 0.2], 1024)(qkv, 1, batch)
    expected = reference.attention(slow, [0.1, 0.2])(qkv.float(), 1, batch)
    what = f"attention over {sequences}, heads of {head_dim}"
    compare(what, result, expected, tolerance)
    compare(f"keys of {what}", fast.k, slow.k, 0.0)
    compare(f"values of {what}", fast.v, slow.v, 0.0)


def check_rows(
    width: int, dtype: torch.dtype, device: torch.device, tolerance: float, generator: torch.Generator
) -> None:
    """Add, bias and LayerNorm against torch."""
    x, added = (torch.randn(5, width, generator=generator).to(device) for _ in range(2))
    bias, weight, shift = (torch.randn(width, generator=generator).to(device) for _ in range(3))
    twin, norm = x.clone(), (weight, shift, 1e-5)
    result = add_norm(x, added.to(dtype), bias, norm, dtype)
    compare("add and norm", result, add_norm_reference(twin, added.to(dtype), bias, norm, dtype), tolerance)
    compare("the sum before the norm", x, twin, 1e-6)


def move(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """The batch on another device."""
    names = [name for name in ForwardBatch.__slots__ if name != "max_query_len"]
    return replace(batch, **{name: getattr(batch, name).to(device) for name in names})
