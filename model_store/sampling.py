"""THE table of sampling fields: of each its type, its legal values, and the value that changes nothing.

Bodies of every dialect, tasks' defaults, messages and pages are made from it. A new field is an entry here, a
field of the engine's `SamplingParams`, and the code that uses it; no other file names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SamplingValue = bool | int | float | str | tuple[str, ...] | tuple[int, ...] | tuple[tuple[int, float], ...]

MAX_STOPS = 8
MAX_STOP_CHARS = 1000
MAX_STOP_IDS = 1024
MAX_BIASES = 1024
MAX_BIAS = 100
_NOUNS = {bool: "true or false", int: "an integer", float: "a number", tuple: "a list"}


@dataclass(frozen=True, slots=True)
class Field:
    """What one field takes.

    Args:
        type: of its values: bool, int, float, or tuple, whose items are checked by who knows the vocabulary.
        neutral: the value that changes nothing; None where there is none.
        min, max: bounds of a number.
        min_is_legal: whether `min` itself is legal.
        note: what `min` means, in a word.
        max_items: of a list.
        max_chars: of each string of a list, which may not be empty; 0 for a list of something else.
        words_too: what a switch takes besides true and false.
        text: legal values in words, where the bounds do not say them.
        is_task_default: whether a task may give a default for it.
    """

    type: type
    neutral: SamplingValue | None = None
    min: int = 0
    max: int = 0
    min_is_legal: bool = True
    note: str = ""
    max_items: int = 0
    max_chars: int = 0
    words_too: tuple[str, ...] = ()
    text: str = ""
    is_task_default: bool = True

    @property
    def words(self) -> str:
        """The legal values in words, for messages and pages."""
        if self.text or self.type is bool:
            return self.text or _NOUNS[bool]
        noun, note = _NOUNS[self.type], f" ({self.note})" if self.note else ""
        if self.min_is_legal:
            return f"{noun} from {self.min}{note} to {self.max}"
        return f"{noun} above {self.min}, up to {self.max}"

    def problem(self, value: object) -> str:
        """Say what is wrong with a value ("must be …"); "" when nothing is."""
        if isinstance(value, str) and value in self.words_too:
            return ""
        legal_types = (int, float) if self.type is float else self.type
        if not isinstance(value, legal_types) or (isinstance(value, bool) and self.type is not bool):
            return f"must be {_NOUNS[self.type]}"
        if isinstance(value, bool):
            return ""
        if isinstance(value, tuple):
            if len(value) > self.max_items:
                return f"must have at most {self.max_items} items"
            is_text = (isinstance(text, str) and 0 < len(text) <= self.max_chars for text in value)
            if self.max_chars and not all(is_text):
                return f"must be of strings of 1 to {self.max_chars} characters"
            return ""
        assert isinstance(value, int | float), "there is no other type"
        is_above = self.min <= value if self.min_is_legal else self.min < value
        if is_above and value <= self.max:
            return ""
        return f"must be {'at least' if self.min_is_legal else 'more than'} {self.min} and at most {self.max}"


SAMPLING: Mapping[str, Field] = {
    "max_new_tokens": Field(int, min=1, max=2**20, text="an integer from 1 to what fits beside the prompt"),
    "min_new_tokens": Field(int, 0, max=2**20),
    "ignore_eos": Field(bool, False, is_task_default=False),
    "temperature": Field(float, 1, max=2, note="greedy"),
    "top_k": Field(int, 0, max=2**31 - 1, note="off"),
    "top_p": Field(float, 1, max=1, min_is_legal=False),
    "min_p": Field(float, 0, max=1),
    "num_beams": Field(int, 1, min=1, max=16, note="no beam search"),
    "num_return_sequences": Field(int, 1, min=1, max=16),
    "length_penalty": Field(float, 1, min=-10, max=10),
    "early_stopping": Field(bool, False, words_too=("never",), text='true, false or "never"'),
    "repetition_penalty": Field(float, 1, max=1_000_000, min_is_legal=False),
    "no_repeat_ngram_size": Field(int, 0, max=2**20, note="off"),
    "frequency_penalty": Field(float, 0, min=-2, max=2),
    "presence_penalty": Field(float, 0, min=-2, max=2),
    "stop": Field(
        tuple,
        (),
        max_items=MAX_STOPS,
        max_chars=MAX_STOP_CHARS,
        text=f"a string, or at most {MAX_STOPS}, of 1 to {MAX_STOP_CHARS} characters each",
        is_task_default=False,  # a task has stop strings of its own
    ),
    "include_stop_str_in_output": Field(bool, False, is_task_default=False),
    "skip_special_tokens": Field(bool, True, is_task_default=False),
    "stop_token_ids": Field(
        tuple,
        (),
        max_items=MAX_STOP_IDS,
        text=f"a list of at most {MAX_STOP_IDS} token ids",
        is_task_default=False,
    ),
    "seed": Field(int, max=2**63 - 1, text="an integer from 0 to 2^63-1", is_task_default=False),
    "logit_bias": Field(
        tuple,
        (),
        max_items=MAX_BIASES,
        text=f"at most {MAX_BIASES} token ids, each with a number from -{MAX_BIAS} to {MAX_BIAS}",
        is_task_default=False,
    ),
}
TASK_DEFAULTS = tuple(name for name, field in SAMPLING.items() if field.is_task_default)

OPTIONS: Mapping[str, Field] = {
    "n": Field(int, 1, min=1, max=16),
    "logprobs": Field(int, max=20),
    "num_answers": Field(int, 1, min=1, max=20),
}
