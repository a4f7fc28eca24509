"""Fills in the sampling fields of a call: what was given, else the task's default, else the contract's.

Values are checked here, once a request and for every dialect alike, by `model_store.sampling.SAMPLING`; an
error names the field and its legal values, never the value. What fits beside a prompt is `fitting`'s concern.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_store.sampling import MAX_BIAS, OPTIONS, SAMPLING
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.sequence import SamplingParams
from service.errors import InvalidRequest
from service.tasks.calls import ModelLimits, SamplingFields

DRAWN_SEEDS = 2**53  # every one of them survives a JSON reader that knows only doubles
DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Decoding:
    """Resolved sampling fields.

    Args:
        params: everything but the length, which depends on the prompt.
        max_new_tokens: how many tokens are wanted.
        is_explicit: whether the caller asked for that many; a default is clamped to what fits instead.
    """

    params: SamplingParams
    max_new_tokens: int
    is_explicit: bool


def check_neutral(given: SamplingFields, names: Iterable[str], when: str) -> None:
    """Raise `InvalidRequest` for a field that is neither left out nor at the value that changes nothing."""
    for name in names:
        neutral = SAMPLING[name].neutral
        if given.get(name, neutral) != neutral:
            raise InvalidRequest(f"{name} must be {str(neutral).lower()} or left out {when}", name)


def decoding_for(
    given: SamplingFields, task: Task, tokenizer: Tokenizer, allow_zero: bool = False, **options: int
) -> Decoding:
    """Check a call's sampling fields and options, and fill in the fields.

    Args:
        given: the call's fields.
        task: whose defaults apply.
        tokenizer: bounds token ids and knows which of them end a text.
        allow_zero: whether `max_new_tokens` may be 0 (the prompt is only scored).
        options: of `model_store.sampling.OPTIONS`, to be checked with the fields.

    Returns:
        The parameters; the seed is drawn below 2^53 where none was given.

    Raises:
        InvalidRequest: a value is out of its range.
    """
    if unknown := [name for name in given if name not in SAMPLING]:
        raise InvalidRequest(f"{unknown[0]} is no sampling field; legal: {', '.join(SAMPLING)}", unknown[0])
    for name, value in {**options, **given}.items():
        field = SAMPLING[name] if name in SAMPLING else OPTIONS[name]
        is_none_wanted = allow_zero and name == "max_new_tokens" and value == 0
        if field.problem(value) and not is_none_wanted:
            raise InvalidRequest(f"{name} has a value that is not legal; legal: {field.words}", name)
    if given.get("stop_token_ids") or given.get("logit_bias"):
        _check_tokens(given, tokenizer.vocab_size)
    values = {
        "max_new_tokens": DEFAULT_NEW_TOKENS,
        "temperature": 1.0 if task.kind == "generate" else 0.0,
        "seed": secrets.randbelow(DRAWN_SEEDS),
        "stop": task.stop,
        **task.sampling,
        **given,
    }
    n, wanted = options.get("n", 1), values.get("num_return_sequences", 1)
    if n > 1 and wanted not in (1, n):
        raise InvalidRequest(f"n must be left out or num_return_sequences, which is {wanted}", "n")
    values["num_return_sequences"] = max(n, wanted)
    _check_search(values, given)
    max_new_tokens = values.pop("max_new_tokens")
    if max_new_tokens == 0:  # nothing to search for
        values["num_beams"] = 1
    min_new_tokens = values.get("min_new_tokens", 0)
    if min_new_tokens > max_new_tokens:  # of the two, a field that was given is to blame
        if "max_new_tokens" in given and "min_new_tokens" not in given:
            legal = f"at least {min_new_tokens} for this task"
            raise InvalidRequest(f"max_new_tokens must be {legal}", "max_new_tokens")
        legal = f"at most max_new_tokens, which is {max_new_tokens}"
        raise InvalidRequest(f"min_new_tokens must be {legal}", "min_new_tokens")
    if not values.get("ignore_eos"):  # the engine knows the first end by itself
        values["stop_token_ids"] = (*values.get("stop_token_ids", ()), *tokenizer.eos_token_ids[1:])
    return Decoding(SamplingParams(**values), max_new_tokens, "max_new_tokens" in given)


# What would draw, which a beam search does not, and what says how it goes.
DRAWING = ("temperature", "top_k", "top_p", "min_p")
SEARCH_ONLY = ("length_penalty", "early_stopping")


def _check_search(values: Mapping[str, Any], given: SamplingFields) -> None:
    """Refuse fields of a beam search without one, and beside one what only a draw has; a task's own defaults
    for drawing do not apply there.
    """
    num_beams = values.get("num_beams", 1)
    if num_beams == 1:
        check_neutral(given, SEARCH_ONLY, "without num_beams above 1")
        return
    for name in DRAWING:
        is_greedy = name == "temperature" and given.get(name) == 0
        if not is_greedy:
            check_neutral(given, [name], "with num_beams above 1, where nothing is drawn")
    if values.get("num_return_sequences", 1) > num_beams:
        name = "num_return_sequences" if given.get("num_return_sequences", 1) > num_beams else "n"
        raise InvalidRequest(f"{name} must be at most num_beams, which is {num_beams}", name)


def num_sequences(decoding: Decoding) -> int:
    """As how many sequences a prompt counts: its beams, or its samples."""
    params = decoding.params
    return params.num_beams if params.num_beams > 1 else params.num_return_sequences


def check_places(decoding: Decoding, limits: ModelLimits, is_streamed: bool) -> None:
    """Refuse a beam search of more beams than may run, or in a stream: its best text is known at its end.

    Raises:
        InvalidRequest: names the field.
    """
    num_beams = decoding.params.num_beams
    if num_beams > limits.max_beams:
        raise InvalidRequest(f"num_beams must be at most {limits.max_beams} here", "num_beams")
    if num_beams > 1 and is_streamed:
        text = "stream must be false with num_beams above 1: the best text is known at the end of the search"
        raise InvalidRequest(text, "stream")


def _check_tokens(given: SamplingFields, vocab_size: int) -> None:
    """Refuse tokens that the model does not have, and what must not be said of one."""
    if not all(0 <= token_id < vocab_size for token_id in given.get("stop_token_ids", ())):
        legal = f"at least 0 and at most {vocab_size - 1}"
        raise InvalidRequest(f"stop_token_ids must be {legal}", "stop_token_ids")
    biases = given.get("logit_bias", ())
    if len(dict(biases)) < len(biases):
        raise InvalidRequest("logit_bias must name each token once", "logit_bias")
    if not all(0 <= token_id < vocab_size and abs(bias) <= MAX_BIAS for token_id, bias in biases):
        legal = f"token ids from 0 to {vocab_size - 1} to numbers from -{MAX_BIAS} to {MAX_BIAS}"
        raise InvalidRequest(f"logit_bias must map {legal}", "logit_bias")
