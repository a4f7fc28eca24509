"""Whether the compiled kernels agree with torch on the processor they run on; asked once, at start-up.

Small random layers and batches go through the kernels and through the reference that they stand for. It is
handed in, for no wing enters another; `backends.torch` says what is expected.
"""

from __future__ import annotations

import time

import torch

from service.engine.backend import Reference
from service.engine.backends.cpu import processor
from service.engine.backends.cpu.attention import CpuAttention, arranged
from service.engine.backends.cpu.draw import CpuSampler
from service.engine.backends.cpu.linear import CpuLinear
from service.engine.backends.cpu.pool import pool
from service.engine.backends.kernel_check import KernelMismatch, compare, ragged_batch
from service.engine.config import Precision
from service.engine.devices import DEVICES
from service.engine.model.attention import KVCache, cache_dtype
from service.engine.model.logits_processors import SampleRow
from service.engine.sequence import SamplingParams

# largest difference allowed, relative to the largest result (torch rounds bfloat16 results, too)
_TOLERANCE: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 1e-2, "int8": 1e-5}
_ROWS = (1, 3, 8, 17, 33)


def self_check(precision: Precision, reference: Reference) -> str:
    """Compare the kernels of one precision with the reference of that precision.

    Returns:
        One line for the log: instructions in use, threads, time taken.

    Raises:
        KernelMismatch: they disagree; the caller should compute with the reference, and say so.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    for width, columns, activation in ((96, 200, "gelu_new"), (77, 130, "relu"), (256, 64, None)):
        check_linear(width, columns, activation, precision, generator, reference)
    for head_dim in (64, 24):
        check_attention(head_dim, cache_dtype(precision), generator, reference)
    check_draws(generator, reference)
    taken = time.perf_counter() - started
    return (
        f"{precision} kernels: {instructions(precision)}, {pool().threads} threads, checked in {taken:.2f} s"
    )


def instructions(precision: Precision) -> str:
    """What multiplies on this processor."""
    if processor.HAS_TILES and precision != "float32":
        return f"AMX {'INT8' if precision == 'int8' else 'BF16'}"
    if precision == "int8" and processor.HAS_VNNI:
        return "AVX-512 VNNI"
    if precision == "bfloat16" and processor.HAS_BF16:
        return "AVX-512 BF16"
    return "AVX-512" if processor.HAS_AVX512 else "AVX2" if processor.HAS_AVX2 else f"generic {precision}"


def check_linear(
    width: int,
    columns: int,
    activation: str | None,
    precision: Precision,
    generator: torch.Generator,
    reference: Reference,
) -> None:
    """One layer against its reference, and each row alone against the same row among others."""
    weight, bias = (torch.randn(shape, generator=generator) for shape in ((width, columns), (columns,)))
    fast = CpuLinear(weight, bias, precision=precision, activation=activation)
    slow = reference.linear(weight, bias, activation)
    for count in _ROWS:
        x, residual = (torch.randn(count, n, generator=generator) for n in (width, columns))
        result = fast(x, residual)
        what = f"{precision} linear {width} x {columns}, {count} rows"
        compare(what, result, slow(x, residual), _TOLERANCE[precision])
        if not torch.equal(fast(x[-1:], residual[-1:]), result[-1:]):
            raise KernelMismatch(f"{what}: the last row differs from the same row alone")


def check_attention(
    head_dim: int, dtype: torch.dtype, generator: torch.Generator, reference: Reference
) -> None:
    """A ragged batch (a decode, a prefill, a chunk with context) against the reference."""
    batch = ragged_batch([(20, 1), (0, 7), (33, 4)], 16)
    heads, shape = 3, (2, 12, 3, 16, head_dim)
    fast, slow = (KVCache.allocate(*shape, dtype, DEVICES["cpu"]) for _ in range(2))
    for cached in (slow.k, slow.v):
        cached.copy_(torch.randn(shape, generator=generator))
    for cached, content in zip((fast.k, fast.v), arranged(slow.k, slow.v), strict=True):
        cached.copy_(content)
    qkv = torch.randn(batch.slots.shape[0], 3 * heads * head_dim, generator=generator)
    scales = [0.1, 0.2]
    expected = reference.attention(slow, scales)(qkv, 1, batch)
    compare(f"attention, heads of {head_dim}", CpuAttention(fast, scales)(qkv, 1, batch), expected, 1e-5)
    if not all(map(torch.equal, (fast.k, fast.v), arranged(slow.k, slow.v))):
        raise KernelMismatch(f"attention, heads of {head_dim}: the cache holds other keys or values")


def check_draws(generator: torch.Generator, reference: Reference) -> None:
    """Ids taken with and without each field, some of the vocabulary banned, and their log probabilities,
    against the reference.
    """
    count, vocabulary = 32, 700
    logits = 3 * torch.randn(count, vocabulary, generator=generator)
    logits[:, :100] = -torch.inf
    words = torch.randint(100, 110, (count, 40), generator=generator).tolist()
    rows = [SampleRow(_checked_params(i), words[i][:20], words[i][20:]) for i in range(count)]
    asked = (logits, range(count), rows, [0])
    for drawn, expected in zip(CpuSampler().draw(*asked), reference.sampler.draw(*asked), strict=True):
        if drawn.token_id != expected.token_id:
            raise KernelMismatch("drawing: an id differs from torch's")
        if drawn.logprob is not None and expected.logprob is not None:
            ours, theirs = (
                torch.tensor([logprob.logprob, *(value for _, value in logprob.top)])
                for logprob in (drawn.logprob, expected.logprob)
            )
            compare("log probabilities", ours, theirs, 1e-5)


def _checked_params(i: int) -> SamplingParams:
    """Fields in many combinations; each with 32 rows."""
    return SamplingParams(
        temperature=0.5 + i / 16 if i % 5 else 0.0,
        top_k=(0, 0, 40, 300)[i % 4],
        top_p=(1.0, 0.9, 1.0, 0.5)[i % 4],
        min_p=0.05 if i % 8 == 0 else 0.0,
        repetition_penalty=(1.0, 1.3, 0.7)[i % 3],
        frequency_penalty=0.4 if i % 7 == 1 else 0.0,
        presence_penalty=0.6 if i % 7 == 2 else 0.0,
        no_repeat_ngram_size=(0, 0, 2)[i // 3 % 3],
        min_new_tokens=40 if i % 9 == 0 else 0,
        stop_token_ids=(130, 140),
        logit_bias=((120, 5.0), (121, -5.0)) if i % 6 == 4 else (),
        logprobs=(None, 0, 5)[i % 3],
        seed=i,
    )
