"""Puts an engine together: model, cache, scheduler, runner, warm-up. The only file that knows all of them.

Runs on the engine thread, so that whatever compiles, compiles where it will run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from service.engine.architecture import Architecture, UnsupportedCheckpoint
from service.engine.backends.cuda.build import KV_SHARE, build_forward, checked, one_line_without_memory
from service.engine.backends.torch.attention import ReferenceAttention
from service.engine.block_pool import BlockPool
from service.engine.container import usable_processors
from service.engine.detokenizer import TokenPieces
from service.engine.engine import Engine
from service.engine.linear import Backend, Precision, auto_precision
from service.engine.memory import free_memory_bytes, one_line_without_host_memory
from service.engine.model.attention import KVCache
from service.engine.model.gpt2 import GPT2, Numerics
from service.engine.model.runner import Forward, ModelRunner
from service.engine.model.sampler import DrawFromAll, draw_from_all
from service.engine.observer import NullObserver, Observer
from service.engine.scheduler import Budget, Scheduler
from service.engine.sequence import TENANT_SHARE, Job, SamplingParams, Sequence, SequenceRequest
from service.engine.speculator import Speculator
from service.engine.step_cost import StepCost

BLOCK_SIZE = 16
_MIN_PREFILL_ROWS = 16
_MIN_PREFILL_ROWS_CUDA = 512  # an eager step costs about the same up to there
_KV_SHARE_CPU = 0.25  # of the memory left


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is built from; every value decided, nothing read from the environment."""

    folder: Path
    device: str = "cpu"
    precision: Precision | None = None  # None: see `auto_precision`
    backend: Backend | None = None  # None: the fast kernels where they pass their self-check, else reference
    is_deterministic: bool = False
    kv_cache_bytes: int = 0  # 0: see `allocate_cache`
    max_batch_tokens: int = 512
    max_running: int = 64
    num_threads: int = 0  # 0: the cores this process may use
    speculation: bool = True
    report: Callable[[str], None] = field(default=lambda line: None)  # progress, one line each


def build_engine(
    config: EngineConfig,
    pieces: TokenPieces,
    observer: Observer | None = None,
    on_fault: Callable[[BaseException], None] = lambda error: None,
) -> Engine:
    """Load the model and make the engine ready to step.

    Raises:
        UnsupportedCheckpoint: the checkpoint or the cache size cannot be served, or memory does not suffice;
            names why.
    """
    with one_line_without_host_memory(), one_line_without_memory(config.device):
        return _build(config, pieces, observer or NullObserver(), on_fault)


def _build(
    config: EngineConfig, pieces: TokenPieces, observer: Observer, on_fault: Callable[[BaseException], None]
) -> Engine:
    numerics = choose_numerics(config)
    model = GPT2.load(config.folder, numerics)
    cache = allocate_cache(config, model.architecture, numerics)
    forward = make_forward(model, cache, config.max_running)
    layout = "cpu" if numerics.backend == "cuda" else config.device  # graphs copy a whole step at once
    runner = ModelRunner(forward, BLOCK_SIZE, [pieces.eos_id], layout, choose_draw(numerics))
    least = _MIN_PREFILL_ROWS_CUDA if numerics.backend == "cuda" else _MIN_PREFILL_ROWS
    cost = StepCost(least)
    speculates = config.speculation and numerics.backend != "cuda"  # a replayed step beats a longer eager one
    speculator = Speculator(cost, config.max_batch_tokens) if speculates else None
    scheduler = Scheduler(
        BlockPool(cache.k.shape[1] - num_scratch_blocks(numerics), BLOCK_SIZE),
        Budget(config.max_batch_tokens, config.max_running, max(1, int(TENANT_SHARE * config.max_running))),
        cost,
        speculator,
    )
    engine = Engine(scheduler, runner, pieces, on_fault=on_fault)
    engine.facts = describe(numerics, cache)
    warm_up(engine, model.architecture, config)
    engine.reporter.observer = observer
    return engine


def choose_numerics(config: EngineConfig) -> Numerics:
    """Decide precision and kernels for this machine; float32 in plain torch is always exact on the CPU."""
    wanted = config.precision or auto_precision(config.device)
    backend = config.backend or _checked_backend(wanted, config)
    precision = config.precision or auto_precision(config.device, backend)
    is_exact = config.is_deterministic or (precision == "float32" and config.device == "cpu")
    if backend == "cpu":
        # The kernels have threads of their own; two pools would fight over the cores.
        torch.set_num_threads(1)
    elif config.device == "cpu":
        torch.set_num_threads(config.num_threads or usable_processors())
    return Numerics(precision, config.device, backend, is_exact)


def _checked_backend(precision: Precision, config: EngineConfig) -> Backend:
    """The fast kernels, if they compute on this very machine what torch computes; else torch, loudly."""
    if config.device != "cpu" and config.is_deterministic:
        config.report("deterministic: torch computes on the GPU, in row buckets (slower)")
        return "reference"
    try:
        if config.device != "cpu":
            config.report(checked(precision, config.device))
            return "cuda"
        from service.engine.backends.cpu import cache
        from service.engine.backends.cpu.pool import set_threads
        from service.engine.backends.cpu.self_check import self_check

        set_threads(config.num_threads or None)
        if cache.COMPLAINT:
            config.report(cache.COMPLAINT)
        config.report(self_check(precision))
        return "cpu"
    except Exception as error:
        config.report(
            f"the fast kernels are off, torch computes instead (slower): {type(error).__name__}: {error}"
        )
        return "reference"


def describe(numerics: Numerics, cache: KVCache) -> dict[str, str | int]:
    """What was decided, for `/info` and the log."""
    return {
        "device": numerics.device,
        "precision": numerics.precision,
        "kernels": numerics.backend,
        "num_threads": _num_threads(numerics),
        "kv_cache_tokens": cache.k.shape[1] * BLOCK_SIZE,
        "kv_cache_bytes": 2 * cache.k.numel() * cache.k.element_size(),
    }


def _num_threads(numerics: Numerics) -> int:
    """Compute threads on the processor: the kernels' own, or torch's."""
    if numerics.backend != "cpu":
        return torch.get_num_threads()
    from service.engine.backends.cpu.pool import pool

    return pool().threads


def make_forward(model: GPT2, cache: KVCache, max_running: int) -> Forward:
    """The model's forward pass over this cache: in one native call where the CPU kernels can do all of it,
    replayed from graphs on a GPU.
    """
    architecture, numerics = model.architecture, model.numerics
    scales = architecture.attention_scales
    if numerics.backend == "cuda":
        return build_forward(model, cache, max_running)
    if numerics.backend == "reference":
        return partial(
            model.forward, attention=ReferenceAttention(cache, scales, is_exact=numerics.is_deterministic)
        )
    from service.engine.backends.cpu.attention import CpuAttention  # compiles: only where it is used
    from service.engine.backends.cpu.forward import FusedForward, can_fuse

    attention = CpuAttention(cache, scales, max_context=architecture.n_positions)
    return (
        FusedForward(model, attention)
        if can_fuse(model, attention)
        else partial(model.forward, attention=attention)
    )


def choose_draw(numerics: Numerics) -> DrawFromAll:
    """What draws from the whole vocabulary."""
    if numerics.backend != "cpu":
        return draw_from_all
    from service.engine.backends.cpu import draw  # compiles: only where it is used

    return draw.draw_from_all


def allocate_cache(config: EngineConfig, architecture: Architecture, numerics: Numerics) -> KVCache:
    """Allocate KV blocks for the configured bytes; if none are configured, for half of `max_running` at full
    length and a quarter of the free memory at most (on a GPU for all of them, and for 0.8 of it).

    Raises:
        UnsupportedCheckpoint: too small for one full sequence, or more than there is.
    """
    per_token = architecture.kv_bytes_per_token(numerics.cache_dtype.itemsize)
    per_block = per_token * BLOCK_SIZE
    blocks_per_sequence = -(-architecture.n_positions // BLOCK_SIZE)
    num_full = config.max_running if config.device != "cpu" else -(-config.max_running // 2)
    most = blocks_per_sequence * num_full  # few texts fill the window; touching memory takes time at start
    share = KV_SHARE if config.device != "cpu" else _KV_SHARE_CPU
    free = free_memory_bytes(config.device)
    available = config.kv_cache_bytes or int(free * share)
    scratch = num_scratch_blocks(numerics)
    num_blocks = available // per_block - scratch
    if not config.kv_cache_bytes:
        num_blocks = min(num_blocks, most)
    least = (blocks_per_sequence + scratch) * per_block
    if num_blocks < blocks_per_sequence:
        raise UnsupportedCheckpoint(
            f"the KV cache holds {num_blocks * BLOCK_SIZE} tokens, one full sequence needs "
            f"{architecture.n_positions}; TEXTGEN_KV_CACHE_BYTES must be at least {least}"
        )
    if available > free:  # taking it all the same would end the process without a word
        raise UnsupportedCheckpoint(
            "TEXTGEN_KV_CACHE_BYTES is more than the memory that is free; "
            f"legal here and now is auto, or {least} … {free}"
        )
    a = architecture
    return KVCache.allocate(
        a.n_layer,
        num_blocks + scratch,
        a.n_head,
        BLOCK_SIZE,
        a.head_dim,
        numerics.cache_dtype,
        torch.device(config.device),
    )


def num_scratch_blocks(numerics: Numerics) -> int:
    """Blocks at the end of the cache of no sequence: padded rows of replayed steps write there."""
    return 1 if numerics.backend == "cuda" else 0


def warm_up(engine: Engine, architecture: Architecture, config: EngineConfig) -> None:
    """Run the sizes of step that will come, so that the first request pays for nothing and costs are
    known.
    """
    longest = min(config.max_batch_tokens, architecture.n_positions - 4)
    for length, copies in ((1, 1), (1, 8), (1, min(32, config.max_running)), (longest, 1)):
        job = Job(salt="warm-up")
        params = SamplingParams(max_new_tokens=4, temperature=0.0, ignore_eos=True)
        for index in range(copies):
            request = SequenceRequest((0,) * length, params, index)
            engine.add(Sequence(job, index, request, engine.clock()))
        while engine.has_work:
            engine.step()
    cost = engine.scheduler.cost
    engine.slowest_step_s = max(cost.predict(longest), cost.predict(1))
