"""The legal values of the sampling fields that a task may give defaults for. The engine applies them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """The legal values of one sampling field."""

    low: float
    high: float
    is_integer: bool = False
    low_is_legal: bool = True

    def problem(self, value: object) -> str:
        """Say what is wrong with `value`; "" when nothing is."""
        wanted = int if self.is_integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            return f"must be {'an integer' if self.is_integer else 'a number'}"
        is_low_enough = self.low <= value if self.low_is_legal else self.low < value
        if not is_low_enough or not value <= self.high:
            bound = "at least" if self.low_is_legal else "more than"
            return f"must be {bound} {self.low:g} and at most {self.high:g}"
        return ""


SAMPLING_RANGES: Mapping[str, Range] = {
    "max_new_tokens": Range(1, 1 << 20, is_integer=True),
    "min_new_tokens": Range(0, 1 << 20, is_integer=True),
    "temperature": Range(0, 2),
    "top_k": Range(0, 1 << 31, is_integer=True),
    "top_p": Range(0, 1, low_is_legal=False),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0, 1e6, low_is_legal=False),
    "no_repeat_ngram_size": Range(0, 1 << 20, is_integer=True),
    "frequency_penalty": Range(-2, 2),
    "presence_penalty": Range(-2, 2),
}
