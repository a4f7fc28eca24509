"""The engine on a GPU: is it right, how fast is it, how near to the memory's limit, against transformers.

    python3 bench/gpu.py              one command on a bare machine: Python, torch, transformers, this folder
    python3 bench/gpu.py --dry-run    the same on the processor with a tiny model, to see that it runs

Nothing is installed and nothing is fetched; weights are random, of the real shapes. The last line is JSON.
Serving over HTTP is left out by name: `textgen bench` measures it where the web packages are installed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from checkpoint import SHAPES, make_weights  # noqa: E402
from transformers import GenerationConfig, GPT2LMHeadModel  # noqa: E402

from service.engine.config import EngineConfig  # noqa: E402
from service.engine.engine import Engine  # noqa: E402
from service.engine.loader import build_engine  # noqa: E402
from service.engine.sequence import (  # noqa: E402
    Job,
    SamplingParams,
    Sequence,
    SequenceRequest,
)

PROMPT_TOKENS = 64
_LIBRARY_S = 180
# largest difference of a log probability that rounding explains
TOLERANCES = {"float32": 0.02, "bfloat16": 0.5}
Ids = list[list[int]]


class Pieces:
    """Stands for a tokenizer: every token is one letter."""

    def __init__(self, eos_id: int) -> None:
        self.eos_id = eos_id

    def piece(self, previous_id: int | None, token_id: int) -> bytes:
        """One byte."""
        return b"x"

    def is_special(self, token_id: int) -> bool:
        """None is."""
        return False


def prompts(number: int, vocab_size: int) -> Ids:
    """Different random ids for each row."""
    draw = random.Random(number)
    return [[draw.randrange(vocab_size - 1) for _ in range(PROMPT_TOKENS)] for _ in range(number)]


def make_engine(folder: Path, shape: str, device: str, precision: Any, most: int) -> Engine:
    """The service's engine as the service builds it."""
    per_sequence = 2 * SHAPES[shape]["n_layer"] * SHAPES[shape]["n_embd"] * 1024
    config = EngineConfig(
        folder,
        device=device,
        precision=precision,
        max_running=most,
        max_batch_tokens=max(2048, most),
        kv_cache_bytes=(most + 1) * per_sequence * (4 if precision == "float32" else 2),
        num_threads=1,  # on the processor, in a dry run
        speculation=False,
        report=print,
    )
    return build_engine(config, Pieces(SHAPES[shape]["vocab_size"] - 1))


def add_all(engine: Engine, rows: Ids, params: SamplingParams) -> None:
    """Submit one job with a sequence for each row."""
    job, indices = Job(salt=str(time.monotonic())), count()
    for row in rows:
        engine.add(Sequence(job, next(indices), SequenceRequest(tuple(row), params), engine.clock()))


def run_all(engine: Engine) -> tuple[dict[int, list[int]], list[tuple[float, int]]]:
    """Step until nothing is left: the ids of each row, and (time, tokens) of each step."""
    ids: dict[int, list[int]] = {}
    steps = []
    while engine.has_work:
        news = engine.step()
        for _, output in news:
            if output.error:
                raise RuntimeError(output.error)
            ids.setdefault(output.index, []).extend(output.token_ids)
        steps.append((time.perf_counter(), sum(len(output.token_ids) for _, output in news)))
    return ids, steps


def correctness(folder: Path, shape: str, device: str, precision: str) -> dict[str, Any]:
    """Greedy tokens of rows of many lengths; transformers in float32 says how far each is from the best."""
    rows = [row[: 5 + 7 * i] for i, row in enumerate(prompts(8, SHAPES[shape]["vocab_size"]))]
    engine = make_engine(folder, shape, device, precision, 8)
    add_all(engine, rows, SamplingParams(max_new_tokens=24, temperature=0.0, ignore_eos=True))
    found, _ = run_all(engine)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    worst, num_same, num_all = 0.0, 0, 0
    for index, row in enumerate(rows):
        with torch.inference_mode():
            logits = model(torch.tensor([row + found[index]], device=device)).logits[0].log_softmax(-1)
        for place, token in enumerate(found[index], len(row) - 1):
            loss = float(logits[place].max() - logits[place, token])
            worst, num_same, num_all = max(worst, loss), num_same + (loss == 0), num_all + 1
    return {
        "worst_loss": round(worst, 5),
        "same_as_transformers": round(num_same / num_all, 4),
        "kernels": engine.facts["kernels"],  # `reference` on a GPU: Triton was not usable, see the line above
        "passed": worst <= TOLERANCES[precision],
    }


def decode_speed(engine: Engine, rows: Ids, new_tokens: int) -> dict[str, float]:
    """Tokens/s while all rows decode, and milliseconds to the first token of the last of them."""
    params = SamplingParams(max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    began_at = time.perf_counter()
    add_all(engine, rows, params)
    _, steps = run_all(engine)
    total, started = 0, 0
    while total < len(rows):  # every row has its first token from here on
        total += steps[started][1]
        started += 1
    seconds = steps[-1][0] - steps[started - 1][0]
    decoded = sum(number for _, number in steps[started:])
    return {"tokens_per_s": decoded / seconds, "prefill_ms": 1000 * (steps[started - 1][0] - began_at)}


def floor_ms(folder: Path, shape: str, batch: int, new_tokens: int, bytes_per_s: float) -> float:
    """What a decode step cannot be under in bf16: all weights and half of the new context, read once."""
    sizes = SHAPES[shape]
    weights = (folder / "model.safetensors").stat().st_size / 2  # saved in float32
    context = PROMPT_TOKENS + new_tokens / 2
    cache = batch * context * 2 * sizes["n_layer"] * sizes["n_embd"] * 2
    return 1000 * (weights + cache) / bytes_per_s


def copy_bytes_per_s(device: str) -> float:
    """Measured bandwidth: a large copy reads and writes every byte."""
    source = torch.empty((1 << 30) if device != "cpu" else (1 << 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        _wait(device)
        began_at = time.perf_counter()
        target.copy_(source)
        _wait(device)
        times.append(time.perf_counter() - began_at)
    return 2 * source.numel() / min(times)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def transformers_speeds(folder: Path, batch: int, device: str, new_tokens: int) -> dict[str, Any]:
    """`generate` and continuous batching in bf16, each in a process of its own; why, where one cannot run."""
    found: dict[str, Any] = {}
    if device == "cpu":
        found["continuous"] = "left out: it does not end on the processor"
    for name in ("generate", "continuous")[: 1 if device == "cpu" else 2]:
        command = [
            sys.executable,
            __file__,
            "--library",
            name,
            str(folder),
            device,
            str(batch),
            str(new_tokens),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIBRARY_S)
            found[name] = float(done.stdout.split()[-1])
        except subprocess.TimeoutExpired:
            found[name] = f"nothing after {_LIBRARY_S} s"
        except (ValueError, IndexError):
            found[name] = (done.stderr.strip().splitlines() or ["?"])[-1][:200]
    return found


def run_library(name: str, folder: Path, device: str, batch: int, new_tokens: int) -> float:
    """Tokens/s of transformers, prefill included: warmed up once."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    model = model.to(device).eval()
    rows = prompts(batch, model.config.vocab_size)
    decode = {"generate": _generate, "continuous": _continuous}[name]
    decode(model, rows, device, 8)
    _wait(device)
    began_at = time.perf_counter()
    number = decode(model, rows, device, new_tokens)
    _wait(device)
    return number / (time.perf_counter() - began_at)


def _generate(model: Any, rows: Ids, device: str, new_tokens: int) -> int:
    ids = torch.tensor(rows, device=device)
    options = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    return int(out.shape[0] * (out.shape[1] - ids.shape[1]))


def _continuous(model: Any, rows: Ids, device: str, new_tokens: int) -> int:
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(inputs=rows, generation_config=config)
    return sum(len(output.generated_tokens) for output in outputs.values())


def measure_shape(
    folder: Path, shape: str, arguments: argparse.Namespace, bandwidth: float
) -> dict[str, Any]:
    """All figures of one shape."""
    found: dict[str, Any] = {}
    precision = "float32" if arguments.dry_run else "bfloat16"
    engine = make_engine(folder, shape, arguments.device, precision, max(arguments.batches))
    for batch in arguments.batches:
        rows = prompts(batch, SHAPES[shape]["vocab_size"])
        decode_speed(engine, rows, 8)  # warm
        ours = decode_speed(engine, rows, arguments.new_tokens)
        step_ms = 1000 * batch / ours["tokens_per_s"]
        floor = floor_ms(folder, shape, batch, arguments.new_tokens, bandwidth)
        others = transformers_speeds(folder, batch, arguments.device, arguments.new_tokens)
        found[str(batch)] = {
            "tokens_per_s": round(ours["tokens_per_s"], 1),
            "prefill_ms": round(ours["prefill_ms"], 2),
            "step_ms": round(step_ms, 4),
            "floor_ms": round(floor, 4),
            "share_of_floor": round(floor / step_ms, 3),
            "transformers": others,
        }
        print(f"{shape} batch {batch}: {found[str(batch)]}", flush=True)
    return found


def main() -> None:
    """The command."""
    arguments = parse()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no CUDA device here; --dry-run shows the script on the processor")
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu"
    bandwidth = copy_bytes_per_s(arguments.device)
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "copy_gb_per_s": bandwidth / 1e9}
    print(f"{name}, torch {torch.__version__}, copies {bandwidth / 1e9:.0f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as work:
        for shape in arguments.shapes:
            folder = make_weights(arguments.work or Path(work) / shape, shape)
            right = {p: correctness(folder, shape, arguments.device, p) for p in ("float32", "bfloat16")}
            print(f"{shape}: {right}", flush=True)
            results[shape] = {"correct": right, "speed": measure_shape(folder, shape, arguments, bandwidth)}
    results["http"] = "left out: start `textgen serve` and run `textgen bench` beside it"
    print(json.dumps(results))
    if not all(right["passed"] for s in arguments.shapes for right in results[s]["correct"].values()):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    """Read the command line; a dry run is small."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the processor, with a tiny model")
    parser.add_argument("--shapes", default="124m,xl")
    parser.add_argument("--batches", default="1,64,256")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--work", type=Path, help="keep the weights here (one shape only)")
    arguments = parser.parse_args()
    arguments.device = "cpu" if arguments.dry_run else "cuda"
    arguments.shapes = ["tiny"] if arguments.dry_run else arguments.shapes.split(",")
    arguments.batches = [1, 4] if arguments.dry_run else [int(b) for b in arguments.batches.split(",")]
    arguments.new_tokens = min(arguments.new_tokens, 16) if arguments.dry_run else arguments.new_tokens
    return arguments


if __name__ == "__main__":
    if sys.argv[1:2] == ["--library"]:
        kind, model_folder, device_name, rows_wanted, tokens_wanted = sys.argv[2:]
        print(run_library(kind, Path(model_folder), device_name, int(rows_wanted), int(tokens_wanted)))
    else:
        main()
