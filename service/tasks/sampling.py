"""Fills in the sampling fields of a call: what was given, else the task's default, else the contract's.

Values are checked here, once a request and for every dialect alike, by `model_store.sampling.SAMPLING`; an
error names the field and its legal values, never the value. What fits beside a prompt is `fitting`'s concern.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from model_store.sampling import MAX_BIAS, OPTIONS, SAMPLING
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.sequence import SamplingParams
from service.errors import InvalidRequest
from service.tasks.calls import SamplingFields

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


def resolve(
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
    max_new_tokens = values.pop("max_new_tokens")
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
