"""The engine without HTTP: tokens/s at 1, 8 and 32 sequences, and what speculation changes. JSON last.

    python bench/engine.py FOLDER [--precision int8] [--rounds 3]
        [--only-bare 64 | --only-sampled 8 32 | --only-constrained 8 32]

`bare` is what the served figures are to be compared with: same prompts' lengths (90 tokens in, 64 out,
greedy), a sequence that ends is replaced at once. `sampled` is the same with the fields that people set, as a
share of greedy, in turns. `constrained` is drawn texts that follow a JSON schema, as a share of drawn texts
that follow none. `speculation` runs the same requests with and without it, in turns: on texts that repeat
what stands in the prompt (greedy), and on drawn texts that do not (temperature 1), where it may cost at most
a few percent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_store.architecture import read_architecture
from model_store.tokenizer import Tokenizer
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loader import build_engine
from service.engine.sequence import Job, SamplingParams, Sequence, SequenceRequest
from service.tasks.calls import Constraint, Origin
from service.tasks.constraints import Grammar, Grammars
from service.tasks.offload import Offloader

PROMPT_TOKENS, OUTPUT_TOKENS = 90, 64
SAMPLED: dict[str, dict[str, Any]] = {
    "temperature 0.8": {},
    "temperature 0.8, top_p 0.95": {"top_p": 0.95},
    "temperature 0.8, min_p 0.05": {"min_p": 0.05},
    "temperature 0.8, top_k 50, top_p 0.95": {"top_k": 50, "top_p": 0.95},
    "the same, repetition_penalty 1.2": {"top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2},
    "temperature 0.8, no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3},
    "temperature 0.8, logit_bias, min_new_tokens": {
        "logit_bias": ((11, 2.0), (13, -5.0)),
        "min_new_tokens": 64,
    },
    "temperature 0.8, logprobs 10": {"logprobs": 10},
    "all of them": {
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.3,
        "no_repeat_ngram_size": 3,
        "logit_bias": ((11, 2.0), (13, -5.0)),
        "min_new_tokens": 64,
        "logprobs": 10,
    },
}


# A list that no text of OUTPUT_TOKENS comes to the end of.
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 0, "maximum": 5000},
        "colour": {"enum": ["red", "green", "blue"]},
    },
    "required": ["name", "size", "colour"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": OUTPUT_TOKENS}


def run(engine: Engine, requests: list[SequenceRequest], clients: int) -> tuple[float, dict[int, list[int]]]:
    """Keep `clients` sequences in flight until all requests are done; tokens per second, and the ids."""
    left = list(enumerate(requests))
    ids: dict[int, list[int]] = {}
    in_flight = 0
    started = time.perf_counter()
    while left or in_flight:
        while left and in_flight < clients:
            index, request = left.pop(0)
            engine.add(Sequence(Job(), index, request, engine.clock()))
            in_flight += 1
        for sequence, output in engine.step():
            ids.setdefault(sequence.index, []).extend(output.token_ids)
            in_flight -= output.finish_reason is not None
    seconds = time.perf_counter() - started
    return sum(map(len, ids.values())) / seconds, ids


def random_prompts(count: int, vocab_size: int, seed: int) -> list[tuple[int, ...]]:
    """Prompts that share nothing."""
    draw = random.Random(seed)
    return [tuple(draw.randrange(1, vocab_size) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def requests_for(prompts: list[tuple[int, ...]], temperature: float, **fields: Any) -> list[SequenceRequest]:
    """One request per prompt."""
    params = SamplingParams(OUTPUT_TOKENS, temperature=temperature, ignore_eos=True, seed=1, **fields)
    return [SequenceRequest(prompt, params, i) for i, prompt in enumerate(prompts)]


def bare(
    engine: Engine, vocab_size: int, rounds: int, levels: Iterable[int] = (1, 8, 32)
) -> dict[int, float]:
    """Median tokens/s by sequences in flight."""
    found: dict[int, float] = {}
    for clients in levels:
        rates = []
        for seed in range(rounds):
            prompts = random_prompts(max(3, 2 * clients), vocab_size, 100 * clients + seed)
            rates.append(run(engine, requests_for(prompts, 0.0), clients)[0])
        found[clients] = round(statistics.median(rates), 1)
        print(f"bare, {clients:2} in flight: {found[clients]:8.1f} tokens/s", flush=True)
    return found


def sampled(
    engine: Engine, vocab_size: int, rounds: int, levels: Iterable[int] = (8, 32)
) -> dict[str, dict[int, float]]:
    """Median of tokens/s over greedy's just before, by fields and by sequences in flight; decoding alone, for
    the prompts are cached.
    """
    shares: dict[str, dict[int, float]] = {name: {} for name in SAMPLED}
    for clients in levels:
        ratios: dict[str, list[float]] = {name: [] for name in SAMPLED}
        for seed in range(rounds):
            prompts = random_prompts(2 * clients, vocab_size, 100 * clients + seed)
            run(engine, requests_for(prompts, 0.0), clients)  # from now on the prompts are cached, for all
            for name, fields in SAMPLED.items():
                greedy = run(engine, requests_for(prompts, 0.0), clients)[0]
                ratios[name].append(run(engine, requests_for(prompts, 0.8, **fields), clients)[0] / greedy)
        for name in SAMPLED:
            shares[name][clients] = round(statistics.median(ratios[name]), 3)
            print(f"{name}, {clients:2} in flight: {shares[name][clients]:.2f} of greedy", flush=True)
    return shares


def speculation(engine: Engine, vocab_size: int, rounds: int) -> dict[str, float]:
    """Median of tokens/s with speculation over tokens/s without, for texts that copy and texts that do
    not.
    """
    found: dict[str, float] = {}
    speculator = engine.scheduler.speculator
    for name, temperature in (("copying, greedy", 0.0), ("not copying, drawn", 1.0)):
        ratios = []
        for seed in range(rounds):
            requests = requests_for(random_prompts(4, vocab_size, 7000 + seed), temperature)
            rates, texts = {}, {}
            for is_on in (False, True):
                engine.scheduler.speculator = speculator if is_on else None
                rates[is_on], texts[is_on] = run(engine, requests, 1)
            if texts[False] != texts[True]:
                raise SystemExit(f"{name}: speculation changed a text")
            ratios.append(rates[True] / rates[False])
        found[name] = round(statistics.median(ratios), 3)
        print(f"speculation, {name}: {found[name]:.2f} times the tokens/s, same ids", flush=True)
    return found


def following(request: SequenceRequest, grammar: Grammar) -> SequenceRequest:
    """The same request with a constraint."""
    guide = grammar.guide(request.prompt_ids)
    return replace(request, params=replace(request.params, allowed_next=guide, forced_next=guide.forced))


def constrained(
    engine: Engine, tokenizer: Tokenizer, rounds: int, levels: Iterable[int] = (1, 8, 32)
) -> dict[int, float]:
    """Median of tokens/s of drawn texts that follow a JSON schema over that of the same without one, by
    sequences in flight.
    """
    offloader = Offloader()
    constraint = Constraint("json_schema", json.dumps(SCHEMA))
    grammar = asyncio.run(Grammars(tokenizer, offloader).compile(constraint, Origin()))
    offloader.close()
    found: dict[int, float] = {}
    for clients in levels:
        ratios = []
        for seed in range(rounds):
            count = max(3, 2 * clients)
            prompts = random_prompts(2 * count, tokenizer.vocab_size, 100 * clients + seed)
            free = requests_for(prompts[:count], 0.8)  # none of them twice: the second would be in the cache
            bound = [following(each, grammar) for each in requests_for(prompts[count:], 0.8)]
            rates = [run(engine, requests, clients)[0] for requests in (free, bound)]
            ratios.append(rates[1] / rates[0])
        found[clients] = round(statistics.median(ratios), 3)
        print(f"constrained, {clients:2} in flight: {found[clients]:.2f} of the same without", flush=True)
    return found


def main() -> None:
    """Measure one checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-bare", type=int, metavar="N", help="nothing but `bare`, N in flight")
    parser.add_argument(
        "--only-sampled", type=int, nargs="+", metavar="N", help="nothing but `sampled`, N in flight"
    )
    parser.add_argument(
        "--only-constrained", type=int, nargs="+", metavar="N", help="nothing but `constrained`, N in flight"
    )
    args = parser.parse_args()
    vocab_size = read_architecture(args.folder).vocab_size
    config = EngineConfig(args.folder, precision=args.precision, report=print)
    tokenizer = Tokenizer.load(args.folder)
    if args.only_constrained:
        print(
            json.dumps(
                constrained(build_engine(config, tokenizer), tokenizer, args.rounds, args.only_constrained)
            )
        )
        return
    plain = build_engine(EngineConfig(args.folder, precision=args.precision, speculation=False), tokenizer)
    if args.only_bare:
        bare(plain, vocab_size, args.rounds, [args.only_bare])
        return
    if args.only_sampled:
        print(json.dumps(sampled(plain, vocab_size, args.rounds, args.only_sampled)))
        return
    figures: dict[str, object] = {"facts": plain.facts, "bare": bare(plain, vocab_size, args.rounds)}
    figures["sampled"] = sampled(plain, vocab_size, args.rounds)
    del plain
    drafting = build_engine(config, tokenizer)
    figures["constrained"] = constrained(drafting, tokenizer, args.rounds)
    figures["speculation"] = speculation(drafting, vocab_size, args.rounds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
