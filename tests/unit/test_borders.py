"""Where words part, and where an answer stands: as the definition says, at a cost that has a bound."""

from __future__ import annotations

import random
import re

import pytest

from model_store import borders
from model_store.borders import first_occurrence, sentence_ends, word_starts_and_ends
from model_store.steps import finish

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
CHARACTERS = "ab1. ,\u200d\u0301\u00ad\u200c\u4e00\u0e01\n-\u00e9\U0001f600"


def found(context: str, answer: str, known: int | None = None) -> int | None:
    return finish(first_occurrence(context, answer, known))


def found_by_trying_all(context: str, answer: str) -> int | None:
    """The definition."""
    starts, ends = word_starts_and_ends(context)
    places = [p for p in range(len(context)) if context.startswith(answer, p)]
    bordered = [p for p in places if p in starts and p + len(answer) in ends]
    return next(iter([*bordered, *places]), None)


@pytest.mark.parametrize("seed", range(20))
def test_sentences_end_where_they_do_however_little_is_looked_at_at_a_time(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    texts = ["".join(rng.choices('aA1.!\u2026\u3002)" \t\n\n\U0001f600', k=30)) for _ in range(300)]
    ends = [sentence_ends(text) for text in texts]
    monkeypatch.setattr(borders, "_LOOKED_AT", rng.randint(1, 4))
    assert [sentence_ends(text) for text in texts] == ends and any(ends)


def test_no_run_of_marks_is_looked_at_twice() -> None:
    calls = 0

    class Counted:
        def match(self, text: str, at: int) -> re.Match[str] | None:
            nonlocal calls
            calls += 1
            return pattern.match(text, at)

    pattern = borders._SENTENCE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(borders, "_SENTENCE", Counted())
        assert sentence_ends("Who" + "." * 100_000 + "x" * 100_000) == []
    assert calls == 1


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_found_where_the_definition_says(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        context = "".join(rng.choices(CHARACTERS, k=rng.randint(1, 14)))
        start = rng.randrange(len(context))
        answer = context[start : start + rng.randint(1, 4)].strip()
        if answer:
            assert found(context, answer) == found_by_trying_all(context, answer)


def test_a_place_within_another_word_is_not_the_answers_place() -> None:
    assert found("seaside or sea", "sea") == 11
    assert found("in 3.14 or 14", "14") == 11
    assert found("seaside", "sea") == 0
    assert found("a ship", "sea") is None


def test_behind_a_known_place_nothing_is_looked_for() -> None:
    assert found("seaside or sea, sea", "sea", 16) == 11
    assert found("seaside or sea", "sea", 0) == 0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("lighthouse " * 60_000, "use"),
        ("a" * 600_000, "aa"),
        (FAMILY * 60_000, "\U0001f469"),
        ("e" + "\u0301" * 300_000, "\u0301"),
        ("\u00e9" * 300_000 + ".", "\u00e9\u00e9"),
    ],
)
def test_looking_for_an_answer_takes_steps_as_the_text_is_long(text: str, answer: str) -> None:
    """Not as often as the answer stands within longer words; a step looks at a bounded piece."""
    num_steps = sum(1 for _ in first_occurrence(text, answer))
    assert num_steps <= len(text) / (32 * 1024) + 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 x",
            ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "x"],
        ),
        ("com\u00adpa\u00adny", ["com\u00adpa\u00adny"]),
        ("word\u2060joiner", ["word\u2060joiner"]),
        ("cafe\u0301s", ["cafe\u0301s"]),
        ("one\u200btwo", ["one", "\u200b", "two"]),
    ],
)
def test_marks_without_width_do_not_part_a_word(text: str, words: list[str]) -> None:
    starts, ends = word_starts_and_ends(text)
    assert [text[start:end] for start, end in zip(starts, ends, strict=True)] == words


def test_a_soft_hyphen_at_the_end_of_a_line_ends_no_word_before_it() -> None:
    starts, ends = word_starts_and_ends("com\u00ad\npany")
    assert (starts, ends) == ([0, 3, 5], [3, 4, 9])
