"""How near prefill comes to what the processor can do: whole steps beside the bare tile kernel. JSON last.

    python bench/prefill.py [--precision bfloat16,int8] [--rounds 3]

The peak is the register tile alone, on every thread, with rows and one tile of weights that stay in the
cache: its multiplications per second over those that GPT-2 124M's linear layers take for a token. Attention,
LayerNorm, GELU, packing and the head are in the step and not in the peak. Both are measured in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time

import numpy as np
from numba import njit
from step_cost import WIDTH, build, median_ms, with_ids

from service.engine.backends.cpu.backend import CpuBackend
from service.engine.backends.cpu.linear import packed_row_bytes
from service.engine.backends.cpu.native import gemm, matrix_tiles
from service.engine.backends.cpu.processor import (
    HAS_TILES,
    MATRIX_ROWS,
    MAX_PASS_ROWS,
    ROWS,
    STEP_BYTES,
    TILE,
)
from service.engine.backends.cpu.records import BFLOAT16, INT8
from service.engine.backends.kernel_check import ragged_batch
from service.engine.container import usable_processors
from service.engine.model.attention import KVCache, cache_dtype

LENGTHS = (100, 400, 900)
LAYERS = 12
PRODUCTS_PER_TOKEN = (
    LAYERS * 12 * WIDTH * WIDTH
)  # of the linear layers: 3 + 1 + 4 + 4 times the width's square
KINDS = {"bfloat16": (BFLOAT16, 2), "int8": (INT8, 4)}  # and how many values of K a step takes


@njit(nogil=True, error_model="numpy")
def spin(kind, rows, row_bytes, weights, steps, sums, times):  # type: ignore[no-untyped-def]
    """The tile kernel, again and again, on the same operands."""
    if HAS_TILES:
        matrix_tiles.configure(MATRIX_ROWS)
        for _ in range(times):
            if kind == INT8:
                matrix_tiles.multiply_int8(rows, row_bytes, weights, steps, sums, weights, 1)
            else:
                matrix_tiles.multiply_bfloat16(rows, row_bytes, weights, steps, sums, weights, 1)
        matrix_tiles.release()
    else:
        for _ in range(times):
            if kind == INT8:
                gemm.multiply_int8(rows, row_bytes, weights, steps, sums, weights, ROWS[INT8], 1)
            else:
                gemm.multiply_bfloat16(rows, row_bytes, weights, steps, sums, weights, ROWS[BFLOAT16], 1)


def peak(precision: str, threads: int, times: int = 60000) -> float:
    """Tokens per second if prefill were nothing but the tile kernel."""
    kind, per_step = KINDS[precision]
    row_bytes, steps = packed_row_bytes(kind, WIDTH), WIDTH // per_step
    height = MATRIX_ROWS if HAS_TILES else ROWS[kind]
    sizes = (MAX_PASS_ROWS * row_bytes, steps * STEP_BYTES, MAX_PASS_ROWS * STEP_BYTES)
    rooms = [[np.zeros(size + 128, np.uint8) for size in sizes] for _ in range(threads)]

    def work(room: list[np.ndarray], processor: int) -> None:
        os.sched_setaffinity(threading.get_native_id(), {processor})
        rows, weights, sums = ((each.ctypes.data + 63) // 64 * 64 for each in room)
        spin(kind, rows, row_bytes, weights, steps, sums, times)

    processors = sorted(os.sched_getaffinity(0))
    workers = [threading.Thread(target=work, args=pair) for pair in zip(rooms, processors, strict=False)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    return threads * times * height * TILE * WIDTH / seconds / PRODUCTS_PER_TOKEN


def measure(backend: CpuBackend, rounds: int) -> dict[str, float]:
    """Medians of tokens/s, by length of the prompt and of the bare kernel."""
    model = build(backend, LAYERS)
    a, dtype = model.architecture, cache_dtype(backend.precision)
    cache = KVCache.allocate(LAYERS, 100, a.n_head, 16, a.head_dim, dtype, backend.device)
    forward = backend.forward(model, cache, max_rows=64)
    peak(backend.precision, backend.num_threads, times=1)  # compiles it
    found: dict[str, list[float]] = {"peak": [], **{str(length): [] for length in LENGTHS}}
    for _ in range(rounds):
        found["peak"].append(peak(backend.precision, backend.num_threads))
        for length in LENGTHS:
            batch = with_ids(ragged_batch([(0, length)], 16))
            found[str(length)].append(1e3 * length / median_ms(lambda batch=batch: forward(batch), 5))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", default="bfloat16,int8")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    threads = usable_processors()
    figures: dict[str, dict[str, float]] = {}
    for precision in options.precision.split(","):
        figures[precision] = rates = measure(CpuBackend(precision, threads), options.rounds)
        print(f"{precision}: bare tile kernel {rates['peak']:.0f} tokens/s")
        for length in LENGTHS:
            rate = rates[str(length)]
            print(f"  prefill of {length}: {rate:.0f} tokens/s, {rate / rates['peak']:.0%} of it", flush=True)
    print(json.dumps({"unit": "tokens/s", "threads": threads, **figures}))


if __name__ == "__main__":
    main()
