"""The automaton of answers: its paths are the spans from word border to word border, all of them."""

# ruff: noqa: RUF001 -- Chinese punctuation is a case

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_models import write_bert
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers
from toy_engine import ENGLISH, make_tokenizer

from model_store.borders import word_starts_and_ends
from model_store.tokenizer import Tokenizer
from model_store.tokenizer_files import LoadedTokenizer
from service.tasks.spans import Continued, SpanAutomaton
from service.tasks.vocabulary import Tokens, Vocabulary

TOKENIZER = make_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
END = TOKENIZER.eos_id
SOME = settings(deadline=None, derandomize=True, max_examples=100)
WILD = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
TEXTS = WILD | st.sampled_from(
    [ENGLISH, "计算机科学是一种科学。", "Tom's 3.5 miles\r\nto 東京 👩‍👩‍👧!", "naïve cafe\u0301s — हिन्दी में"]
)


def _automaton(text: str, max_tokens: int = 30, stop: tuple[str, ...] = ()) -> SpanAutomaton:
    return SpanAutomaton(text, VOCABULARY, END, max_tokens, stop)


def _walk(automaton: SpanAutomaton, seed: int) -> list[int]:
    """A random path to an end."""
    chance = random.Random(seed)
    ids: list[int] = []
    while True:
        token_id = chance.choice(list(automaton(ids)))
        if token_id == END:
            return ids
        ids.append(token_id)


@SOME
@given(TEXTS, st.integers(0, 1000))
def test_every_path_spells_the_span_it_is_said_to_be(text: str, seed: int) -> None:
    automaton = _automaton(text)
    ids = _walk(automaton, seed)
    span = automaton.span(ids)
    if ids and span is not None:
        assert TOKENIZER.decode(ids).removeprefix(" ") == text[slice(*span)]


@SOME
@given(TEXTS, st.integers(0, 1000))
def test_every_path_is_from_word_border_to_word_border(text: str, seed: int) -> None:
    automaton = _automaton(text)
    span = automaton.span(_walk(automaton, seed))
    starts, ends = word_starts_and_ends(text)
    assert span is None or (span[0] in starts and span[1] in ends)


@SOME
@given(TEXTS, st.data())
def test_every_span_of_words_is_reachable(text: str, data: st.DataObject) -> None:
    starts, ends = word_starts_and_ends(text)
    if not starts or not ends:
        return
    start = data.draw(st.sampled_from(starts))
    later = [end for end in ends if start < end <= start + 25]
    if not later:
        return
    answer = text[start : data.draw(st.sampled_from(later))]
    if all(unicodedata.category(character)[0] in "PZC" for character in answer):
        return
    automaton = _automaton(text, max_tokens=200)
    ids: list[int] = []
    for token_id in TOKENIZER.encode(data.draw(st.sampled_from(["", " "])) + answer):
        assert token_id in automaton(ids)
        ids.append(token_id)
    assert END in automaton(ids)


@SOME
@given(TEXTS, st.integers(0, 1000))
def test_something_is_always_allowed(text: str, seed: int) -> None:
    automaton = _automaton(text)
    ids: list[int] = []
    for _ in range(10):
        allowed = automaton(ids)
        assert len(allowed) > 0
        ids.append(random.Random(seed).choice(list(allowed)))


def test_the_first_of_several_places_is_the_span() -> None:
    ids = TOKENIZER.encode(" sea")
    assert _automaton("the sea and the sea").span(ids) == (4, 7)


def test_an_answer_at_its_limit_may_only_complete_its_word() -> None:
    automaton = _automaton("Paris Paris", max_tokens=1)
    ids = [*TOKENIZER.encode(" P")[:1]]
    while END not in automaton(ids):
        ids.append(automaton(ids)[0])
    assert list(automaton(ids)) == [END]


def test_no_answer_holds_a_stop_string() -> None:
    automaton = _automaton("the sea, the king", stop=("sea",))
    spans = {automaton.span(_walk(automaton, seed)) for seed in range(200)}
    assert not any("sea" in "the sea, the king"[slice(*span)] for span in spans if span)


def test_a_text_without_words_allows_the_end_only() -> None:
    assert list(_automaton(" \n ")([])) == [END]


def test_punctuation_alone_is_no_answer() -> None:
    assert _automaton('"Go"').span(TOKENIZER.encode('"')) is None


def test_the_end_alone_is_no_span() -> None:
    assert _automaton("the sea").span([]) is None


def test_an_automaton_goes_on_behind_a_beginning() -> None:
    automaton = _automaton("the sea was cold")
    first, *rest = TOKENIZER.encode(" sea was")
    assert list(Continued((first,), automaton)(rest)) == list(automaton([first, *rest]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tom's 3.5 miles", ["Tom", "'", "s", "3.5", "miles"]),
        ("1,000 (not 4).", ["1,000", "(", "not", "4", ")", "."]),
        ("计算机", ["计", "算", "机"]),
        ("cafe\u0301s!", ["cafe\u0301s", "!"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    starts, ends = word_starts_and_ends(text)
    assert [text[s:e] for s, e in zip(starts, ends, strict=True)] == words


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_bert(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("计算机科学，worlds.", "机科"),
        ("hello worlds.", "worlds"),
        ("hello worlds.", "hello worlds."),
        ("科 hello. 学", "hello. 学"),
        ("Hello WORLDS.", "Hello WORLDS"),
    ],
)
def test_a_tokenizer_that_implies_spaces_reaches_spans_too(bert: Tokenizer, text: str, answer: str) -> None:
    automaton = SpanAutomaton(text, Vocabulary(bert), bert.eos_id, 30)
    ids: list[int] = []
    for token_id in bert.encode(answer):
        assert token_id in automaton(ids)
        ids.append(token_id)
    assert text[slice(*automaton.span(ids))] == answer


def test_a_joined_token_does_not_skip_a_space(bert: Tokenizer) -> None:
    automaton = SpanAutomaton("wor ld wor", Vocabulary(bert), bert.eos_id, 30)
    joined = bert.encode("world")[1]
    assert joined not in automaton(bert.encode("wor"))


def test_the_loader_gives_a_usable_bert(tmp_path: Path) -> None:
    assert Vocabulary(Tokenizer.load(write_bert(tmp_path))).implies_spaces


def _normalizing(*steps: Any) -> Tokenizer:
    """A byte-level tokenizer that changes characters first."""
    backend = Backend.from_str(TOKENIZER._backend.to_str())
    backend.normalizer = normalizers.Sequence(list(steps))
    return Tokenizer(LoadedTokenizer(backend, "byte_level", (0,)))


NORMALIZED = [
    ([normalizers.NFKC()], "In \uff11\uff19\uff14\uff15\u5e74 it was.", "\uff11\uff19\uff14\uff15"),
    ([normalizers.NFKC()], "The \ufb01rst o\ufb03ce.", "\ufb01rst o\ufb03ce"),
    ([normalizers.NFC()], "the cafe\u0301s of", "cafe\u0301s"),
    ([normalizers.NFD()], "the caf\u00e9s of", "caf\u00e9s"),
    ([normalizers.NFC()], "in \u1109\u1165\u110b\u116e\u11af now", "\u1109\u1165\u110b\u116e\u11af"),
    ([normalizers.NFD(), normalizers.StripAccents()], "the cafe\u0301s of", "cafe\u0301s"),
    (
        [normalizers.NFKC(), normalizers.Lowercase()],
        "The \uff26irst \u2116\u00a05",
        "\uff26irst \u2116\u00a05",
    ),
    ([normalizers.Replace("a", "aaa")], "an apple", "an"),
]


@pytest.mark.parametrize(("steps", "text", "answer"), NORMALIZED[:-1])
def test_an_answer_stands_where_the_text_says_it_in_its_own_characters(
    steps: list[Any], text: str, answer: str
) -> None:
    tokenizer = _normalizing(*steps)
    automaton = SpanAutomaton(text, Vocabulary(tokenizer), tokenizer.eos_id, 30)
    ids = tokenizer.encode(" " + answer)
    for count, token_id in enumerate(ids):
        assert token_id in automaton(ids[:count])
    assert tokenizer.eos_id in automaton(ids)
    start = text.index(answer)
    assert automaton.span(ids) == (start, start + len(answer))


def test_only_what_a_tokenizer_changes_in_characters_is_its_normal_form() -> None:
    steps, text, _ = NORMALIZED[-1]
    assert _normalizing(*steps).normalized(text) == text
    assert TOKENIZER.normalized("\ufb01") == "\ufb01"


def test_a_token_as_long_as_a_book_is_left_out() -> None:
    """Its beginnings alone would be five gigabytes."""
    tokens = Tokens()
    tokens.add(b"a", 1)
    tokens.add(b"a" * 100_000, 2)
    assert list(tokens.walk(b"a" * 100_000, 0)) == [(1, 1)]
