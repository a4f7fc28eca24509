"""What memory a service takes, by size of the model and precision. A table, then JSON.

    python bench/memory.py WORK [--shapes 124m,355m] [--precisions bfloat16,int8]

makes checkpoints with random weights in float32 (`bench/checkpoint.py`) in the folder WORK, loads and warms
up each in a process of its own, as a service does, and reads `/proc`. `kept` are the packed weights and what
is kept in float32 (embeddings, norms, biases); `peak` is the most that was resident until the weights were
read, without what was there before, over `kept`; `own` is anonymous memory without `kept` and without what a
warm-up has written of the cache of keys and values; `files` are pages of libraries, which processes share.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from checkpoint import SHAPES, make_checkpoint

_BITS = {"float32": 32, "bfloat16": 16, "int8": 8}
_SERVE = """
import json, sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import service.api.native, service.engine_setup
from model_store.tokenizer import Tokenizer
from service.engine.loader import build_engine
from service.settings import Settings

def memory():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1000 for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}

def cache(kilobytes):
    lines = [line.split() for line in Path("/proc/self/smaps").read_text().splitlines()]
    there = mapped = 0
    for name, *values in lines:
        if not name.endswith(":"):
            is_heap = values[-1] == "[heap]"  # may be as large
        elif name == "Size:":
            mapped = 0 if is_heap else int(values[0])
        elif name == "Anonymous:" and mapped > 0.99 * kilobytes:
            there += int(values[0])
    return there / 1000

found = {}

@contextmanager
def step(what):
    found.setdefault(what.split(" (")[0], memory())
    yield
    found[what.split(" (")[0] + ", done"] = memory()

folder = Path(sys.argv[1])
config = service.engine_setup.engine_config(Settings(device="cpu", precision=sys.argv[2]), folder)
engine = build_engine(replace(config, step=step), Tokenizer.load(folder))
print(json.dumps({**found, "ready": {**memory(), "cache": cache(engine.facts["kv_cache_bytes"] / 2048)}}))
"""


def kept_megabytes(shape: str, precision: str) -> float:
    """Packed matrices and what is kept in float32."""
    sizes = SHAPES[shape]
    width, vocabulary = sizes["n_embd"], sizes["vocab_size"]
    matrices = sizes["n_layer"] * 12 * width * width + vocabulary * width
    vectors = (vocabulary + sizes["n_positions"]) * width + sizes["n_layer"] * 13 * width
    return (matrices * _BITS[precision] / 8 + vectors * 4) / 1e6


def measure(folder: Path, precision: str) -> dict[str, dict[str, float]]:
    """Megabytes at each step of a start."""
    command = [sys.executable, "-c", _SERVE, str(folder), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--shapes", default="124m,355m,774m")
    parser.add_argument("--precisions", default="float32,bfloat16,int8")
    options = parser.parse_args()
    rows = []
    print("| model | precision | kept, MB | peak / kept | own, MB | files, MB | resident when ready, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for shape in options.shapes.split(","):
        folder = make_checkpoint(options.work / shape, shape)
        for precision in options.precisions.split(","):
            found, kept = measure(folder, precision), kept_megabytes(shape, precision)
            ready, before = found["ready"], found["reading the weights"]["VmRSS"]
            peak = (found["reading the weights, done"]["VmHWM"] - before) / kept
            row = [round(kept), round(peak, 2), *(round(ready[name]) for name in ("RssFile", "VmRSS"))]
            own = round(ready["RssAnon"] - ready["cache"] - kept)
            rows.append([shape, precision, *row[:2], own, *row[2:]])
            print("|", " | ".join(map(str, rows[-1])), "|", flush=True)
    print(json.dumps({"unit": "MB", "rows": rows}))


if __name__ == "__main__":
    main()
