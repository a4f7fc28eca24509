"""What a draft model brings and what it may cost, at one client: tokens/s with it over without. JSON last.

    python bench/draft.py WORK [--shape 774m] [--precisions bfloat16,int8] [--shares 1,0.5,0] [--rounds 3]

Random weights agree never, so these are made: blocks cost what they always cost and add nothing, and the head
says for each token which one follows, at random. The small model (`SMALL`) has the same follower for a given
share of the vocabulary and another one for the rest. Greedy, the same requests with and without it in turns;
prompt lookup has nothing to copy. A text that differs ends the measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from checkpoint import SHAPES, make_tokenizer
from engine import random_prompts, requests_for, run
from safetensors.torch import save_file

from model_store.tokenizer import Tokenizer
from service.engine.config import EngineConfig
from service.engine.loader import build_engine

SMALL: dict[str, int] = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 1024}


def make_model(folder: Path, sizes: dict[str, int], share: float) -> Path:
    """Write a checkpoint whose next token is a given one, unless it is there.

    Args:
        folder: where to.
        sizes: as in `checkpoint.SHAPES`.
        share: of the vocabulary whose follower is the one that every model of share 1 has.
    """
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, width = sizes["vocab_size"], sizes["n_embd"]
    generator = torch.Generator().manual_seed(0)
    following = torch.randperm(vocabulary, generator=generator)
    other = following.roll(1)
    agrees = torch.rand(vocabulary, generator=generator) < share
    tokens = torch.randn(vocabulary, width, generator=generator)
    head = torch.zeros(vocabulary, width)
    head.index_add_(0, torch.where(agrees, following, other), tokens)
    weights = {"wte.weight": tokens, "wpe.weight": torch.zeros(sizes["n_positions"], width)}
    shapes = {"attn.c_attn": (width, 3 * width), "mlp.c_fc": (width, 4 * width)}
    for i in range(sizes["n_layer"]):
        for name, shape in shapes.items():
            weights[f"h.{i}.{name}.weight"] = 0.02 * torch.randn(shape, generator=generator)
            weights[f"h.{i}.{name}.bias"] = torch.zeros(shape[1])
        for name, length in (("attn.c_proj", width), ("mlp.c_proj", 4 * width)):
            weights[f"h.{i}.{name}.weight"] = torch.zeros(length, width)
            weights[f"h.{i}.{name}.bias"] = torch.zeros(width)
        for name in (f"h.{i}.ln_1", f"h.{i}.ln_2"):
            weights |= {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
    weights |= {"ln_f.weight": torch.ones(width), "ln_f.bias": torch.zeros(width)}
    state = {f"transformer.{name}": value.bfloat16() for name, value in weights.items()}
    save_file(state | {"lm_head.weight": head.bfloat16()}, folder / "model.safetensors", {"format": "pt"})
    end = vocabulary - 1
    config = {"model_type": "gpt2", **sizes, "bos_token_id": end, "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    make_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    return folder


def measure(large: Path, small: Path, precision: Any, rounds: int) -> dict[str, float]:
    """Median ratio of tokens/s with and without the small model, and how often its tokens were right."""
    tokenizer = Tokenizer.load(large)
    engine = build_engine(EngineConfig(large, precision=precision, draft_folder=small), tokenizer)
    drafter = engine.scheduler.speculator
    ratios, rates = [], []
    for seed in range(rounds):
        requests = requests_for(random_prompts(2, tokenizer.vocab_size, 300 + seed), 0.0)
        found = {}
        for speculator in (None, drafter):
            engine.scheduler.speculator = speculator
            found[speculator] = run(engine, requests, 1)
        if found[None][1] != found[drafter][1]:
            raise SystemExit("the draft model changed a text")
        ratios.append(found[drafter][0] / found[None][0])
        rates.append(found[None][0])
    accepted = drafter.num_model_accepted / max(1, drafter.num_model_drafted)
    return {
        "without": round(statistics.median(rates), 1),
        "ratio": round(statistics.median(ratios), 3),
        "accepted": round(accepted, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="774m")
    parser.add_argument("--precisions", default="bfloat16,int8")
    parser.add_argument("--shares", default="1,0.5,0")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = SHAPES[options.shape]
    large = make_model(options.work / f"follows-{options.shape}", sizes, 1.0)
    figures: dict[str, dict[str, float]] = {}
    for share in options.shares.split(","):
        small = make_model(
            options.work / f"small-{share}", SMALL | {"vocab_size": sizes["vocab_size"]}, float(share)
        )
        for precision in options.precisions.split(","):
            found = measure(large, small, precision, options.rounds)
            figures[f"{precision}, agrees on {share}"] = found
            print(
                f"{precision}, agrees on {share} of the vocabulary: {found['ratio']:.2f} times "
                f"{found['without']:.1f} tokens/s; {found['accepted']:.0%} of the drafted were right",
                flush=True,
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
