"""Beam search gives the texts and the scores of transformers' `generate`, in float32."""

from __future__ import annotations

import itertools
import random
from functools import cache
from typing import Any

import pytest
import torch
from tiny import ask, checkpoint, draw_model, real_engine, separate
from transformers import GPT2LMHeadModel

from service.engine.engine import Engine
from service.engine.sequence import SequenceOutput

# by seed: a vocabulary that no row of a kernel divides, a head of its own, other heads and widths
SHAPES: list[dict[str, Any]] = [
    {"vocab_size": 259},
    {"vocab_size": 1003, "tie_word_embeddings": False, "n_embd": 48, "n_head": 3},
    {"vocab_size": 300, "n_layer": 3, "n_head": 2},
]
PAD = 256  # no end, and in no prompt


def config_of(seed: int) -> dict[str, Any]:
    """A model whose last token is its end."""
    eos = SHAPES[seed]["vocab_size"] - 1
    return {**SHAPES[seed], "eos_token_id": eos, "bos_token_id": eos}


@cache
def engine(backend: str, seed: int) -> Engine:
    """An engine over one of the random models, whose end of text is likely enough to come."""
    return real_engine(
        checkpoint(seed, **config_of(seed)),
        backend=backend,
        num_blocks=512,
        max_running=64,
        max_batch_tokens=256,
    )


@cache
def reference(seed: int) -> GPT2LMHeadModel:
    """The same model in transformers."""
    return draw_model(seed, **config_of(seed))


def searched(
    seed: int, prompts: list[tuple[int, ...]], options: dict[str, Any], backend: str
) -> list[SequenceOutput]:
    """What the engine says of all prompts at once."""
    found: dict[int, SequenceOutput] = {}
    asked = separate([ask(prompt, **options) for prompt in prompts])
    places = {sequence: place for place, sequence in enumerate(asked)}
    running = engine(backend, seed)
    for sequence in asked:
        running.add(sequence)
    while running.has_work:
        for sequence, output in running.step():
            found[places[sequence]] = output
        running.scheduler.check()
    return [found[place] for place in range(len(prompts))]


@cache
def expected(number: int) -> list[tuple[list[tuple[int, ...]], list[float]]]:
    """What transformers gives for each prompt of a case: generated ids without padding, and scores."""
    options, prompts = options_of(number), prompts_of(number)
    ends = [config_of(number % 3)["eos_token_id"], *options.get("stop_token_ids", ())]
    given = {name: value for name, value in options.items() if name != "stop_token_ids"}
    found = []
    for length, of_length in itertools.groupby(prompts, key=len):
        batch = torch.tensor([*of_length])
        with torch.inference_mode():
            made = reference(number % 3).generate(
                batch,
                attention_mask=torch.ones_like(batch),
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=PAD,
                return_dict_in_generate=True,
                output_scores=True,
                **given,
            )
        texts = [_without_padding(row[length:], ends) for row in made.sequences.tolist()]
        scores, each = made.sequences_scores.tolist(), given.get("num_return_sequences", 1)
        found += [(texts[at : at + each], scores[at : at + each]) for at in range(0, len(texts), each)]
    return found


def _without_padding(row: list[int], ends: list[int]) -> tuple[int, ...]:
    return tuple(row[: next((at + 1 for at, token_id in enumerate(row) if token_id in ends), len(row))])


def options_of(number: int) -> dict[str, Any]:
    """The sampling fields of a case."""
    return {"max_new_tokens": 20, **CASES[number]}


def prompts_of(number: int) -> list[tuple[int, ...]]:
    """Random prompts of three lengths, on borders of blocks and off them."""
    rng = random.Random(number)
    lengths = sorted((1 + number, 16, rng.randint(17, 70)))
    return [tuple(rng.randrange(256) for _ in range(length)) for length in lengths for _ in range(6)]


CASES: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 5, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": -1.5, "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": 1.5, "early_stopping": "never", "num_return_sequences": 2},
    {"num_beams": 4, "repetition_penalty": 1.3, "num_return_sequences": 4},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "early_stopping": True},
    {"num_beams": 4, "min_new_tokens": 12, "num_return_sequences": 2},
    {"num_beams": 4, "stop_token_ids": tuple(range(40)), "num_return_sequences": 4},
    {"num_beams": 6, "stop_token_ids": tuple(range(20)), "length_penalty": 0.6, "early_stopping": True},
    {"num_beams": 16, "num_return_sequences": 16, "stop_token_ids": (3, 99)},
]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_texts_and_scores_are_those_of_transformers(number: int, backend: str) -> None:
    """Two hundred prompts in all, those of a case in one batch."""
    outputs = searched(number % 3, prompts_of(number), options_of(number), backend)
    for output, (texts, scores) in zip(outputs, expected(number), strict=True):
        found = [output, *output.others]
        assert [one.token_ids for one in found] == texts
        assert [one.score for one in found] == pytest.approx(scores, abs=1e-4, rel=1e-6)


def test_some_of_these_texts_end_by_themselves() -> None:
    """Else the cases above would show little."""
    lengths = {len(text) for texts, _ in expected(9) for text in texts}
    assert min(lengths) < 20 and max(lengths) == 20
