"""Puts an engine together: backend, model, cache, scheduler, runner, warm-up. Only it knows all of them.

Runs on the engine thread, so that whatever compiles, compiles where it will run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from model_store.architecture import Architecture
from model_store.checkpoint import read_checkpoint
from model_store.errors import UnsupportedCheckpoint
from service.engine.backend import Backend
from service.engine.backends import choose
from service.engine.block_pool import BlockPool
from service.engine.config import EngineConfig
from service.engine.detokenizer import TokenPieces
from service.engine.devices import DEVICES
from service.engine.draft_model import DraftModel
from service.engine.engine import Engine
from service.engine.memory import give_back_free_memory
from service.engine.model.attention import KVCache, cache_dtype
from service.engine.model.gpt2 import GPT2
from service.engine.model.runner import ModelRunner
from service.engine.observer import NullObserver, Observer
from service.engine.scheduler import Scheduler
from service.engine.sequence import Job, SamplingParams, Sequence, SequenceRequest
from service.engine.speculator import Speculator
from service.engine.step_cost import Budget, StepCost
from service.engine.twins import NEAR, Twins

BLOCK_SIZE = 16
_SCORED_TOKENS = 33  # of a text whose log probabilities tell what such rows cost
_DRAFT_WINDOWS = 8  # full texts that a draft model's cache holds: a batch of more is wide enough


def build_engine(
    config: EngineConfig,
    pieces: TokenPieces,
    observer: Observer | None = None,
    on_fault: Callable[[BaseException], None] = lambda error: None,
) -> Engine:
    """Load the model and make the engine ready to step.

    Raises:
        UnsupportedCheckpoint: the checkpoint or the cache size cannot be served, or memory does not suffice.
    """
    with DEVICES[config.device].out_of_memory_explained():
        backend = choose(config)
        torch.set_num_threads(backend.num_torch_threads)
        num_bytes = sum(file.stat().st_size for file in read_checkpoint(config.folder).files)
        with config.step(f"reading the weights ({num_bytes / 1e6:,.0f} MB)"):
            model = GPT2.load(config.folder, backend)
            give_back_free_memory()
        cache = allocate_cache(config, model.architecture, backend)
        forward = backend.forward(model, cache, config.max_running)
        cost = StepCost(backend.min_prefill_rows)
        runner = ModelRunner(
            forward, BLOCK_SIZE, [pieces.eos_id], backend.layout, backend.sampler, cost, cache.copy_blocks
        )
        speculates = config.speculation and backend.speculates
        speculator = Speculator(cost, config.max_batch_tokens) if speculates else None
        scheduler = Scheduler(
            BlockPool(cache.k.shape[1] - backend.num_scratch_blocks, BLOCK_SIZE),
            Budget(config.max_batch_tokens, config.max_running),
            cost,
            speculator,
        )
        engine = Engine(scheduler, runner, pieces, on_fault=on_fault)
        runner.on_progress = engine.pulse.beat
        engine.facts = describe(backend, cache)
        if speculator is not None and config.draft_folder is not None:
            load_draft_model(config.draft_folder, engine, speculator, model.architecture, backend, config)
        elif config.draft_folder is not None:
            config.warn("the draft model is not used: drafts cannot pay with these kernels")
        with config.step("warming up"):
            warm_up(engine, model.architecture, config)
        engine.reporter.observer = observer or NullObserver()
        return engine


def describe(backend: Backend, cache: KVCache) -> dict[str, str | int]:
    """What was decided, for `/info` and the log."""
    return {
        "device": backend.device.name,
        "precision": backend.precision,
        "kernels": backend.name,
        "num_threads": backend.num_threads,
        "kv_cache_tokens": cache.k.shape[1] * BLOCK_SIZE,
        "kv_cache_bytes": 2 * cache.k.numel() * cache.k.element_size(),
    }


def allocate_cache(config: EngineConfig, architecture: Architecture, backend: Backend) -> KVCache:
    """Allocate KV blocks for the configured bytes; if none are configured, for as many sequences at full
    length as suit the device, within its share of the free memory.

    Raises:
        UnsupportedCheckpoint: too small for one full sequence, or more than there is.
    """
    a, device, dtype = architecture, backend.device, cache_dtype(backend.precision)
    per_block = a.kv_bytes_per_token(dtype.itemsize) * BLOCK_SIZE
    blocks_per_sequence = -(-a.n_positions // BLOCK_SIZE)
    scratch, free = backend.num_scratch_blocks, device.free_bytes()
    available = config.kv_cache_bytes or int(free * device.kv_share)
    num_blocks = available // per_block - scratch
    if not config.kv_cache_bytes:
        num_blocks = min(num_blocks, blocks_per_sequence * device.num_full_sequences(config.max_running))
    min_bytes = (blocks_per_sequence + scratch) * per_block
    if num_blocks < blocks_per_sequence:
        raise UnsupportedCheckpoint(
            f"the KV cache holds {num_blocks * BLOCK_SIZE} tokens, one full sequence needs {a.n_positions}; "
            f"`kv_cache_bytes` must be at least {min_bytes}"
        )
    if available > free:  # taking it all the same would end the process without a word
        raise UnsupportedCheckpoint(
            "`kv_cache_bytes` is more than the memory that is free; "
            f"legal here and now is auto, or {min_bytes} … {free}"
        )
    return KVCache.allocate(a.n_layer, num_blocks + scratch, a.n_head, BLOCK_SIZE, a.head_dim, dtype, device)


def load_draft_model(
    folder: Path,
    engine: Engine,
    lookup: Speculator,
    served: Architecture,
    backend: Backend,
    config: EngineConfig,
) -> None:
    """Let a small model propose drafts beside prompt lookup, with a cache of its own for a few long texts.

    Raises:
        UnsupportedCheckpoint: it does not go with the served one, or memory does not suffice.
    """
    a = read_checkpoint(folder).architecture
    if a.vocab_size != served.vocab_size:
        raise UnsupportedCheckpoint(
            f"`draft_model` has {a.vocab_size} tokens, the served model {served.vocab_size}: "
            "it must have the same vocabulary"
        )
    if a.n_positions < served.n_positions:
        raise UnsupportedCheckpoint(
            f"`draft_model` has a window of {a.n_positions} tokens, the served model of "
            f"{served.n_positions}: it must be at least as long"
        )
    with config.step("reading the draft model"):
        model = GPT2.load(folder, backend)
        give_back_free_memory()
    scheduler, dtype = engine.scheduler, cache_dtype(backend.precision)
    num_windows = min(_DRAFT_WINDOWS, config.max_running)
    num_blocks = num_windows * -(-served.n_positions // BLOCK_SIZE)
    num_bytes = num_blocks * BLOCK_SIZE * a.kv_bytes_per_token(dtype.itemsize)
    if num_bytes > backend.device.free_bytes():
        raise UnsupportedCheckpoint(
            f"`draft_model` needs {num_bytes >> 20} MiB for keys and values, and less is free; "
            "lower `max_running` or `kv_cache_bytes`, or serve without it"
        )
    scratch = backend.num_scratch_blocks
    cache = KVCache.allocate(
        a.n_layer, num_blocks + scratch, a.n_head, BLOCK_SIZE, a.head_dim, dtype, backend.device
    )
    forward = backend.forward(model, cache, config.max_running)
    runner = ModelRunner(
        forward, BLOCK_SIZE, [engine.pieces.eos_id], backend.layout, backend.sampler, scheduler.cost
    )
    runner.on_progress = engine.pulse.beat
    pool = BlockPool(num_blocks, BLOCK_SIZE)
    twins = Twins(runner.execute, pool, config.max_batch_tokens, engine.on_fault)
    scheduler.speculator = DraftModel(
        lookup, twins, scheduler.cost, config.max_batch_tokens, scheduler.time_share
    )
    engine.facts |= {"draft_model": folder.name, "draft_kv_cache_bytes": num_bytes}
    longest = min(config.max_batch_tokens, served.n_positions)
    for length, copies in ((1, 1), (1, 2), (1, 8), (NEAR, 1), (longest, 1)) * 2:
        twins.measure(length, copies)


def warm_up(engine: Engine, architecture: Architecture, config: EngineConfig) -> None:
    """Run the sizes of step that will come: the first request then pays for nothing, and costs are known."""
    longest = min(config.max_batch_tokens, architecture.n_positions - 4)
    for length, copies in ((1, 1), (1, 8), (1, min(32, config.max_running)), (longest, 1)):
        job = Job(salt="warm-up")
        params = SamplingParams(max_new_tokens=4, temperature=0.0, ignore_eos=True)
        for index in range(copies):
            request = SequenceRequest((0,) * length, params, index)
            engine.add(Sequence(job, index, request, engine.clock()))
        while engine.has_work:
            engine.step()
    scored = SamplingParams(max_new_tokens=1, temperature=0.0, logprobs=5, score_from=0)
    for _ in range(2):  # the first may be slow
        request = SequenceRequest((0,) * min(longest, _SCORED_TOKENS), scored)
        engine.add(Sequence(Job(salt="warm-up"), 0, request, engine.clock()))
        while engine.has_work:
            engine.step()
    cost = engine.scheduler.cost
    engine.pulse.slowest_s = max(cost.predict(longest), cost.predict(1))
