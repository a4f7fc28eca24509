"""Fills in the sampling fields of a call: what was given, else the task's default, else the contract's.

Ranges are checked here, for every dialect alike; an error names the field and its legal values, never the
value. What fits beside a prompt is `fitting`'s concern. Read `fitting` next.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.sequence import SamplingParams
from service.errors import InvalidRequest
from service.tasks.calls import SamplingFields

MAX_STOPS = 8
MAX_SEED = 2**63 - 1
DRAWN_SEEDS = 2**53  # every one of them survives a JSON reader that knows only doubles
DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Range:
    """Legal values of a number."""

    low: float
    high: float | None = None
    is_open: bool = False  # whether `low` itself is illegal

    def holds(self, value: float) -> bool:
        """Whether `value` is legal. NaN never is."""
        is_above = value > self.low if self.is_open else value >= self.low
        return is_above and (value <= self.high if self.high is not None else value != float("inf"))

    def __str__(self) -> str:
        """The range in words, for error messages."""
        if self.high is None:
            return f"more than {self.low:g}" if self.is_open else f"at least {self.low:g}"
        bound = f"more than {self.low:g}" if self.is_open else f"at least {self.low:g}"
        return f"{bound} and at most {self.high if isinstance(self.high, int) else format(self.high, 'g')}"


RANGES = {
    "max_new_tokens": Range(1),
    "min_new_tokens": Range(0),
    "temperature": Range(0, 2),
    "top_k": Range(0),
    "top_p": Range(0, 1, is_open=True),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0, is_open=True),
    "no_repeat_ngram_size": Range(0),
    "frequency_penalty": Range(-2, 2),
    "presence_penalty": Range(-2, 2),
    "seed": Range(0, MAX_SEED),
}
N_RANGE = Range(1, 16)
LOGPROBS_RANGE = Range(0, 10)
NUM_ANSWERS_RANGE = Range(1, 20)
_BIAS_RANGE = Range(-100, 100)
MAX_BIASES = MAX_STOP_IDS = 1024


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

    def params_for(self, max_new_tokens: int) -> SamplingParams:
        """The parameters of a sequence with that many new tokens."""
        return replace(self.params, max_new_tokens=max_new_tokens)


def check_range(name: str, value: float, legal: Range) -> None:
    """Raise `InvalidRequest` naming the field unless `value` is legal."""
    if not legal.holds(value):
        raise InvalidRequest(f"{name} must be {legal}", name)


def check_neutral(given: SamplingFields, neutral: Mapping[str, float], when: str) -> None:
    """Raise `InvalidRequest` for a field that is neither left out nor at the value that changes nothing."""
    for name, value in neutral.items():
        if getattr(given, name) not in (None, value):
            legal = str(value).lower() if isinstance(value, bool) else f"{value:g}"
            raise InvalidRequest(f"{name} must be {legal} or left out {when}", name)


def resolve(given: SamplingFields, task: Task, tokenizer: Tokenizer, allow_zero: bool = False) -> Decoding:
    """Fill in and check a call's sampling fields.

    Args:
        given: the call's fields.
        task: whose defaults apply.
        tokenizer: bounds token ids and knows which of them end a text.
        allow_zero: whether `max_new_tokens` may be 0 (the prompt is only scored).

    Returns:
        The parameters; the seed is drawn below 2^53 where none was given.

    Raises:
        InvalidRequest: a value is out of its range.
    """
    _check_given(given, tokenizer.vocab_size, allow_zero)
    temperature = 1.0 if task.kind == "generate" else 0.0  # of a task that names none
    values = {"temperature": temperature, **task.sampling, **_numbers(given)}
    max_new_tokens = int(values.pop("max_new_tokens", DEFAULT_NEW_TOKENS))
    _check_lengths(given, int(values.get("min_new_tokens", 0)), max_new_tokens)
    seed = int(values.pop("seed", secrets.randbelow(DRAWN_SEEDS)))
    other_ends = () if given.ignore_eos else tokenizer.eos_token_ids[1:]  # the engine knows the first
    params = SamplingParams(
        **values,  # type: ignore[arg-type]  # names and ranges were checked, integers are integers
        seed=seed,
        stop=task.stop if given.stop is None else given.stop,
        stop_token_ids=(*(given.stop_token_ids or ()), *other_ends),
        logit_bias=given.logit_bias or (),
        ignore_eos=bool(given.ignore_eos),
    )
    return Decoding(params, max_new_tokens, given.max_new_tokens is not None)


def _check_lengths(given: SamplingFields, min_new_tokens: int, max_new_tokens: int) -> None:
    """Raise `InvalidRequest` when a text must be longer than it may be; blames a field that was given."""
    if min_new_tokens <= max_new_tokens:
        return
    if given.min_new_tokens is None and given.max_new_tokens is not None:
        raise InvalidRequest(
            f"max_new_tokens must be at least {min_new_tokens} for this task", "max_new_tokens"
        )
    legal = f"at most max_new_tokens, which is {max_new_tokens}"
    raise InvalidRequest(f"min_new_tokens must be {legal}", "min_new_tokens")


def _numbers(given: SamplingFields) -> dict[str, float]:
    return {name: getattr(given, name) for name in RANGES if getattr(given, name) is not None}


def _check_given(given: SamplingFields, vocab_size: int, allow_zero: bool) -> None:
    for name, value in _numbers(given).items():
        if not (allow_zero and name == "max_new_tokens" and value == 0):
            check_range(name, value, RANGES[name])
    stop = given.stop or ()
    if len(stop) > MAX_STOPS or not all(stop):
        raise InvalidRequest(f"stop must be a string or at most {MAX_STOPS} non-empty strings", "stop")
    if len(given.stop_token_ids or ()) > MAX_STOP_IDS:
        raise InvalidRequest(f"stop_token_ids must have at most {MAX_STOP_IDS} entries", "stop_token_ids")
    for token_id in given.stop_token_ids or ():
        check_range("stop_token_ids", token_id, Range(0, vocab_size - 1))
    if len(given.logit_bias or ()) > MAX_BIASES:
        raise InvalidRequest(f"logit_bias must have at most {MAX_BIASES} entries", "logit_bias")
    if len(dict(given.logit_bias or ())) < len(given.logit_bias or ()):
        raise InvalidRequest("logit_bias must name each token once", "logit_bias")
    for token_id, bias in given.logit_bias or ():
        if not (0 <= token_id < vocab_size and _BIAS_RANGE.holds(bias)):
            legal = f"token ids from 0 to {vocab_size - 1} to numbers from -100 to 100"
            raise InvalidRequest(f"logit_bias must map {legal}", "logit_bias")


def given_names(given: SamplingFields) -> list[str]:
    """Names of the fields that were given, in declaration order."""
    return [item.name for item in fields(given) if getattr(given, item.name) is not None]
