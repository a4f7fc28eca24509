"""What a neighbour of costly rows waits: 8 greedy tokens beside a job of 48 that are drawn slowly. JSON last.

    python bench/neighbour.py FOLDER [--kind top_p|top_k|greedy] [--seconds 10]

`alone_ms` is the neighbour with nobody beside it, `median_ms` beside the job. The slowest step is what a
newcomer waits for at most. `job_tokens_per_s` is what the job gets beside the neighbour,
`job_alone_tokens_per_s` without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from model_store.tokenizer import Tokenizer
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loader import build_engine
from service.engine.sequence import Job, SamplingParams, Sequence, SequenceRequest, Status

KINDS = {
    "greedy": SamplingParams(800, temperature=0.0, ignore_eos=True),
    "top_p": SamplingParams(800, temperature=2.0, top_p=0.9999, ignore_eos=True, seed=5),
    "top_k": SamplingParams(800, temperature=2.0, top_k=2000, ignore_eos=True, seed=5),
}
PROMPT = tuple((i * 7) % 500 + 5 for i in range(200))
GREEDY = SamplingParams(8, temperature=0.0, ignore_eos=True)


def neighbour(engine: Engine) -> tuple[float, float, int]:
    """Seconds for its tokens, seconds of the slowest step, and the tokens that others got."""
    sequence = Sequence(Job(), 0, SequenceRequest(PROMPT[:3], GREEDY), engine.clock())
    engine.add(sequence)
    began, slowest, others = time.perf_counter(), 0.0, 0
    while sequence.status is not Status.FINISHED:
        started = time.perf_counter()
        outputs = engine.step()
        slowest = max(slowest, time.perf_counter() - started)
        others += sum(len(output.token_ids) for told, output in outputs if told is not sequence)
    return time.perf_counter() - began, slowest, others


def main() -> None:
    """Measure one kind of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="top_p")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    engine = build_engine(EngineConfig(args.folder, report=print), Tokenizer.load(args.folder))
    alone_s = statistics.median(neighbour(engine)[0] for _ in range(10))
    job = Job()
    for index in range(48):
        request = SequenceRequest(PROMPT, KINDS[args.kind], index)
        engine.add(Sequence(job, index, request, engine.clock()))
    until = time.perf_counter() + args.seconds / 3  # its prompts are read, its rows' cost is learnt
    while time.perf_counter() < until:
        engine.step()
    beside: list[tuple[float, float, int]] = []
    began = time.perf_counter()
    while time.perf_counter() < began + args.seconds:
        beside.append(neighbour(engine))
    seconds, num_tokens = time.perf_counter() - began, 0
    began = time.perf_counter()
    while time.perf_counter() < began + args.seconds / 2:
        num_tokens += sum(len(output.token_ids) for _, output in engine.step())
    figures = {
        "kind": args.kind,
        "alone_ms": round(1e3 * alone_s),
        "median_ms": round(1e3 * statistics.median(each for each, _, _ in beside)),
        "slowest_step_ms": round(1e3 * max(each for _, each, _ in beside)),
        "job_tokens_per_s": round(sum(each for _, _, each in beside) / seconds, 1),
        "job_alone_tokens_per_s": round(num_tokens / (time.perf_counter() - began), 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
