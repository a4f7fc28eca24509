"""8 beam searches of 4 beams, beside 32 greedy sequences and beside transformers' search of the same batch.

    python bench/beams.py FOLDER [--precision bfloat16] [--rounds 5]

Prompts of 90 random tokens, 64 tokens out, no early end; each round runs all in turns. A search's tokens are
those of all its beams. Medians of tokens/s and of each over greedy's in its round are printed, JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from engine import OUTPUT_TOKENS, random_prompts, requests_for, run
from transformers import GPT2LMHeadModel

from model_store.architecture import read_architecture
from model_store.tokenizer import Tokenizer
from service.engine.config import EngineConfig
from service.engine.loader import build_engine

REQUESTS, BEAMS = 8, 4


def theirs(model: GPT2LMHeadModel, prompts: list[tuple[int, ...]]) -> float:
    """Tokens per second of transformers' search, beams counted."""
    ids = torch.tensor(prompts)
    started = time.perf_counter()
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=BEAMS,
        do_sample=False,
        min_new_tokens=OUTPUT_TOKENS,
        max_new_tokens=OUTPUT_TOKENS,
        pad_token_id=0,
    )
    seconds = time.perf_counter() - started
    return found[:, ids.shape[1] :].numel() * BEAMS / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    engine = build_engine(
        EngineConfig(args.folder, precision=args.precision, speculation=False), Tokenizer.load(args.folder)
    )
    vocab_size = read_architecture(args.folder).vocab_size
    dtype = torch.float32 if args.precision == "float32" else torch.bfloat16
    model = GPT2LMHeadModel.from_pretrained(args.folder, dtype=dtype).eval()
    rates: dict[str, list[float]] = {"greedy": [], "search": [], "transformers": []}
    for seed in range(args.rounds + 1):  # the first one warms up
        prompts = random_prompts(REQUESTS * BEAMS, vocab_size, seed)
        searches = requests_for(prompts[:REQUESTS], 0.0, num_beams=BEAMS, num_return_sequences=1)
        found = {
            "greedy": run(engine, requests_for(prompts, 0.0), REQUESTS * BEAMS)[0],
            "search": run(engine, searches, REQUESTS)[0] * BEAMS,
            "transformers": theirs(model, prompts[:REQUESTS]),
        }
        if seed:
            for name, rate in found.items():
                rates[name].append(rate)
    for name, all_rates in rates.items():
        shares = [rate / greedy for rate, greedy in zip(all_rates, rates["greedy"], strict=True)]
        rate, share = statistics.median(all_rates), statistics.median(shares)
        print(f"{name:12} {rate:9.1f} tokens/s, {share:.2f} of greedy")
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
