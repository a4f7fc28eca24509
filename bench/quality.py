"""What reduced precision does to a model: perplexity and log probabilities of bf16 and int8 against float32.

    python bench/quality.py TEXT_FILE [MODEL_FOLDER] [--tokens 20000]

The text is cut into windows of the model's length; every token after the first of a window is scored by the
engine itself, with the kernels that serve. Prints a Markdown table for `docs/performance.md`;
the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_store.store import resolve
from model_store.tokenizer import Tokenizer
from service.engine.config import EngineConfig
from service.engine.loader import build_engine
from service.engine.sequence import (
    Job,
    SamplingParams,
    Sequence,
    SequenceRequest,
    TokenLogprob,
)

PRECISIONS = ("float32", "bfloat16", "int8")
SCORE = SamplingParams(max_new_tokens=0, temperature=0.0, logprobs=1, score_from=0)


def windows_of(ids: list[int], length: int, most: int) -> list[tuple[int, ...]]:
    """Cut ids into windows; a rest of one token has nothing to score."""
    ids = ids[:most]
    cuts = [tuple(ids[start : start + length]) for start in range(0, len(ids), length)]
    return [window for window in cuts if len(window) > 1]


def score(config: EngineConfig, tokenizer: Tokenizer, windows: list[tuple[int, ...]]) -> list[TokenLogprob]:
    """Log probabilities of all tokens but the windows' first, in order."""
    engine = build_engine(config, tokenizer)
    job, indices = Job(), count()
    for window in windows:
        engine.add(Sequence(job, next(indices), SequenceRequest(window, SCORE), engine.clock()))
    found: dict[int, tuple[TokenLogprob, ...]] = {}
    while engine.has_work:
        for _, output in engine.step():
            if output.error:
                raise RuntimeError(output.error)
            if output.prompt_logprobs:
                found[output.index] = output.prompt_logprobs
    return [scored for index in sorted(found) for scored in found[index] if scored.logprob is not None]


def compare(scored: list[TokenLogprob], reference: list[TokenLogprob]) -> dict[str, float]:
    """Figures of one precision; `reference` is float32's."""
    own, exact = _values(scored), _values(reference)
    differences = [abs(a - b) for a, b in zip(own, exact, strict=True)]
    same = sum(a.top[0][0] == b.top[0][0] for a, b in zip(scored, reference, strict=True))
    perplexity = math.exp(-sum(own) / len(own))
    return {
        "perplexity": round(perplexity, 4),
        "perplexity_change_percent": round(100 * (perplexity / math.exp(-sum(exact) / len(exact)) - 1), 3),
        "mean_logprob_difference": round(sum(differences) / len(differences), 5),
        "max_logprob_difference": round(max(differences), 4),
        "same_best_token_percent": round(100 * same / len(scored), 2),
    }


def _values(scored: list[TokenLogprob]) -> list[float]:
    return [token.logprob for token in scored if token.logprob is not None]


def show(results: dict[str, dict[str, float]]) -> None:
    """A Markdown table."""
    print("| precision | perplexity | change | mean difference of log p | largest | same best token |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, r in results.items():
        change = f"{r['perplexity_change_percent']:+.2f} %"
        differences = f"{r['mean_logprob_difference']:.4f} | {r['max_logprob_difference']:.2f}"
        same = f"{r['same_best_token_percent']} %"
        print(f"| {name} | {r['perplexity']:.3f} | {change} | {differences} | {same} |")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a text file in the model's language")
    parser.add_argument("model", nargs="?", default="", help="store name or folder; none: the built-in model")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=0, help="tokens of a window; 0: the model's length")
    parser.add_argument("--store", type=Path, default=Path.home() / ".local/share/textgen")
    arguments = parser.parse_args()
    folder = resolve(arguments.model, arguments.store).path
    tokenizer = Tokenizer.load(folder)
    length = arguments.window or _n_positions(folder)
    windows = windows_of(tokenizer.encode(arguments.text.read_text("utf-8")), length, arguments.tokens)
    config = EngineConfig(folder, speculation=False, max_running=8)
    scores = {name: score(replace(config, precision=name), tokenizer, windows) for name in PRECISIONS}
    results: dict[str, Any] = {name: compare(scores[name], scores["float32"]) for name in PRECISIONS}
    show(results)
    print(json.dumps({"model": str(folder), "tokens": len(scores["float32"]), "results": results}))


def _n_positions(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    return int(config.get("n_positions", 1024))


if __name__ == "__main__":
    main()
