"""What a step costs: the fused CPU pass of GPT-2 124M (random weights), and torch's own pieces beside it.

    python bench/step_cost.py [--precision bfloat16,int8] [--layers 12] [--repeats 7]

Speed does not depend on the weights' values. Prints a table of milliseconds per step, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from model_store.architecture import Architecture
from service.engine.backends.cpu.backend import CpuBackend
from service.engine.backends.kernel_check import ragged_batch
from service.engine.backends.torch.backend import TorchBackend
from service.engine.container import usable_processors
from service.engine.model.attention import ForwardBatch, KVCache, cache_dtype
from service.engine.model.gpt2 import GPT2

DECODES = [(1, 96), (4, 96), (8, 96), (32, 96), (64, 96), (8, 512), (32, 512)]
PREFILLS = [64, 128, 512, 1024]
WIDTH, VOCABULARY = 768, 50257


def main() -> None:
    """Measure and print."""
    options = parse()
    threads = options.threads or usable_processors()
    torch.set_num_threads(threads)
    theirs = f"torch oneDNN {str(onednn_dtype()).removeprefix('torch.')}"
    results: dict[str, dict[str, float]] = {theirs: onednn(options.layers, options.repeats)}
    show(f"{theirs}, linear layers only", results[theirs])
    for precision in options.precision.split(","):
        backend = CpuBackend(precision, threads)
        print(backend.self_check(TorchBackend(precision)))
        results[precision] = measure(backend, options.layers, options.repeats)
        show(f"{precision}, whole steps", results[precision])
        show_ratios(precision, results[precision], results[theirs])
    print(json.dumps({"unit": "ms", "threads": threads, "layers": options.layers, **results}))


def show(name: str, table: dict[str, float]) -> None:
    """One table, in milliseconds; prefills in tokens per second, too."""
    print(f"{name}, ms")
    for key, value in table.items():
        tokens = key.split()[1] if key.startswith("prefill") else ""
        print(
            f"  {key:16} {value:8.2f}" + (f"  {1e3 * int(tokens) / value:8.0f} tokens/s" if tokens else ""),
            flush=True,
        )


def show_ratios(name: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
    """How many of our whole steps fit into torch's linear layers alone."""
    pairs = {key: next(found for found in ours if f"{found} ".startswith(f"{key} ")) for key in theirs}
    ratios = (f"{found} {theirs[key] / ours[found]:.2f} x" for key, found in pairs.items())
    print(f"{name}, torch's linear layers alone / our whole step:", ", ".join(ratios), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bfloat16,int8")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def measure(backend: CpuBackend, layers: int, repeats: int) -> dict[str, float]:
    """Whole steps: embedding, all layers, attention, head."""
    model = build(backend, layers)
    a, dtype = model.architecture, cache_dtype(backend.precision)
    cache = KVCache.allocate(layers, 1100, a.n_head, 16, a.head_dim, dtype, backend.device)
    forward = backend.forward(model, cache, max_rows=64)
    table = {}
    for rows, context in DECODES:
        batch = with_ids(ragged_batch([(context - 1, 1)] * rows, 16))
        table[f"decode {rows} x {context}"] = median_ms(lambda batch=batch: forward(batch), repeats)
    for length in PREFILLS:
        batch = with_ids(ragged_batch([(0, length)], 16))
        table[f"prefill {length}"] = median_ms(lambda batch=batch: forward(batch), max(3, repeats // 5))
    return table


def build(backend: CpuBackend, layers: int) -> GPT2:
    """GPT-2 124M's shape with random weights."""
    architecture = Architecture(
        vocab_size=VOCABULARY, n_positions=1024, n_embd=WIDTH, n_layer=layers, n_head=12, n_inner=4 * WIDTH,
        activation_function="gelu_new", layer_norm_epsilon=1e-5, scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False, tie_word_embeddings=True,
    )  # fmt: skip
    c = WIDTH
    shapes = {"wte.weight": (VOCABULARY, c), "wpe.weight": (1024, c), "ln_f.weight": (c,), "ln_f.bias": (c,)}
    for i in range(layers):
        for name, k, n in (
            ("attn.c_attn", c, 3 * c), ("attn.c_proj", c, c),
            ("mlp.c_fc", c, 4 * c), ("mlp.c_proj", 4 * c, c),
        ):  # fmt: skip
            shapes |= {f"h.{i}.{name}.weight": (k, n), f"h.{i}.{name}.bias": (n,)}
        shapes |= {f"h.{i}.{ln}.{part}": (c,) for ln in ("ln_1", "ln_2") for part in ("weight", "bias")}
    weights = {name: 0.02 * torch.randn(shape) for name, shape in shapes.items()}
    return GPT2(architecture, weights, backend)


def with_ids(batch: ForwardBatch) -> ForwardBatch:
    """The batch with random tokens."""
    return replace(batch, input_ids=torch.randint(0, VOCABULARY, batch.slots.shape))


def onednn_dtype() -> torch.dtype:
    """What oneDNN is fastest in: bfloat16 where it has that for this processor."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def prepack(shape: tuple[int, int]) -> Tensor:
    """A random (N, K) weight in oneDNN's own layout."""
    return torch.ops.mkldnn._reorder_linear_weight(torch.randn(shape).to(onednn_dtype()))


def onednn(layers: int, repeats: int) -> dict[str, float]:
    """The linear layers and the head alone, by torch's prepacked product: no attention, no norms."""
    c = WIDTH
    shapes = [(3 * c, c), (c, c), (4 * c, c), (c, 4 * c)] * layers + [(VOCABULARY, c)]
    packed = [
        (
            prepack(shape),
            shape[1],
        )
        for shape in shapes
    ]

    def run(inputs: dict[int, Tensor], count: int) -> None:
        for weight, width in packed[:count]:
            torch.ops.mkldnn._linear_pointwise(inputs[width], weight, None, "none", [], "")

    table = {}
    for rows in (1, 8, 32, 512):
        inputs = {width: torch.randn(rows, width, dtype=onednn_dtype()) for width in (c, 4 * c)}
        name, count = ("prefill 512", len(packed) - 1) if rows == 512 else (f"decode {rows}", len(packed))
        table[name] = median_ms(lambda inputs=inputs, count=count: run(inputs, count), max(3, repeats // 3))
    return table


if __name__ == "__main__":
    main()
