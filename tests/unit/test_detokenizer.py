"""Text deltas: joined they are the text, and they come as early as they can."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.detokenizer import Detokenizer


class Parts:
    """A tokenizer whose token i is the i-th part of some bytes."""

    eos_id = -1

    def __init__(self, parts: Sequence[bytes]) -> None:
        self.parts = parts

    def piece(self, previous_id: int | None, token_id: int) -> bytes:
        """See `TokenPieces`."""
        return self.parts[token_id]

    def is_special(self, token_id: int) -> bool:
        """See `TokenPieces`."""
        return False


class Words:
    """A tokenizer that implies spaces: token i is a word, 0 is a mark."""

    eos_id = 0

    def piece(self, previous_id: int | None, token_id: int) -> bytes:
        """See `TokenPieces`."""
        return b"" if token_id == 0 else b" " * (previous_id is not None) + bytes([96 + token_id])

    def is_special(self, token_id: int) -> bool:
        """See `TokenPieces`."""
        return token_id == 0


@pytest.mark.parametrize(
    ("prompt_ids", "text"), [((), "a b c"), ((5,), " a b c"), ((5, 0), " a b c"), ((0,), "a b c")]
)
def test_a_text_goes_on_from_its_prompt(prompt_ids: tuple[int, ...], text: str) -> None:
    detokenizer = Detokenizer(Words(), prompt_ids=prompt_ids)
    assert "".join(map(detokenizer.push, (1, 2, 0, 3))) == text


def deltas(parts: Sequence[bytes], stop: Sequence[str] = ()) -> list[str]:
    """What each token shows, then what the end shows."""
    detokenizer = Detokenizer(Parts(parts), stop)
    shown = []
    for token_id in range(len(parts)):
        shown.append(detokenizer.push(token_id))
        if detokenizer.is_stopped:
            break
    return [*shown, detokenizer.finish()]


def decode(data: bytes) -> str:
    """All at once: broken bytes become U+FFFD, half a character at the end is dropped."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the stop string that is complete first, found letter by letter."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return text


def split(data: bytes, borders: Sequence[int]) -> list[bytes]:
    """The bytes in parts; some may be empty, as special tokens are."""
    places = [0, *sorted(min(border, len(data)) for border in borders), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


BORDERS = st.lists(st.integers(0, 60), max_size=30)
LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4)
SCRIPTS = st.text(st.sampled_from("aé计算机한👩‍👧ß\u0301ਕ\U0001f1e9🇪\ufffd"), max_size=20)
common = settings(deadline=None, derandomize=True, max_examples=300)


@common
@given(st.binary(max_size=60), BORDERS)
def test_deltas_of_random_bytes_joined_are_the_text(data: bytes, borders: list[int]) -> None:
    assert "".join(deltas(split(data, borders))) == decode(data)


@common
@given(SCRIPTS, BORDERS)
def test_characters_split_between_tokens_arrive_whole(text: str, borders: list[int]) -> None:
    assert "".join(deltas(split(text.encode(), borders))) == text


@common
@given(LETTERS, BORDERS, STOPS)
def test_the_text_ends_before_the_first_stop_string_whatever_the_tokens(
    text: str, borders: list[int], stop: list[str]
) -> None:
    assert "".join(deltas(split(text.encode(), borders), stop)) == cut(text, stop)


@common
@given(SCRIPTS, BORDERS, st.lists(st.text("a计한👩‍🇪", min_size=1, max_size=3), min_size=1, max_size=3))
def test_stop_strings_of_any_script_cut_the_text(text: str, borders: list[int], stop: list[str]) -> None:
    assert "".join(deltas(split(text.encode(), borders), stop)) == cut(text, stop)


@common
@given(st.binary(max_size=40), BORDERS, STOPS)
def test_stop_strings_among_broken_bytes_cut_the_text(
    data: bytes, borders: list[int], stop: list[str]
) -> None:
    assert "".join(deltas(split(data, borders), stop)) == cut(decode(data), stop)


@common
@given(LETTERS, STOPS)
def test_only_the_possible_beginning_of_a_stop_string_is_held_back(text: str, stop: list[str]) -> None:
    text, shown = cut(text, stop), ""
    for end, delta in enumerate(deltas([letter.encode() for letter in text], stop)[:-1], start=1):
        shown += delta
        tails = [text[at:end] for at in range(end + 1)]
        assert shown + next(tail for tail in tails if any(s.startswith(tail) for s in stop)) == text[:end]


@pytest.mark.parametrize(
    ("parts", "stop", "expected"),
    [
        (["Hello", " world"], [], ["Hello", " world", ""]),
        (["a\n", "b"], ["\n\n"], ["a", "\nb", ""]),  # one newline waits for the next token
        (["a\n", "\n"], ["\n\n"], ["a", "", ""]),
        (["ab", "abc"], ["abc"], ["", "ab", ""]),  # the first "ab" waits, then turns out to be text
        (["x", "END"], ["END"], ["x", "", ""]),
        (["EN", "D of it"], ["END"], ["", "", ""]),
        (["aab", "aac"], ["aabaac"], ["", "", ""]),
        (["a", "a", "b"], ["aaab"], ["", "", "aab", ""]),
        (["abc", "d"], ["abcd", "bc"], ["a", ""]),  # "bc" is complete first
        (["abcd"], ["abcd", "bc"], ["a", ""]),  # and so it is in one token
        (["xabc"], ["abc", "bc", "c"], ["x", ""]),  # all complete at once: the longest
        (["almost E"], ["END"], ["almost ", "E"]),  # shown at the end, when nothing can follow
    ],
    ids=str,
)
def test_each_token_shows_what_can_be_shown(parts: list[str], stop: list[str], expected: list[str]) -> None:
    assert deltas([part.encode() for part in parts], stop) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([b"\xe8\xae", b"\xa1"], ["", "计", ""]),
        ([b"a\xe8", b"b"], ["a", "\ufffdb", ""]),  # the other half did not come
        ([b"\xff", b"a"], ["\ufffd", "a", ""]),  # can begin no character: no waiting
        ([b"a\xf0\x9f\x91"], ["a", ""]),  # incomplete at the end: dropped
        ([b"a", b"", b"b"], ["a", "", "b", ""]),
    ],
    ids=str,
)
def test_bytes_show_as_soon_as_they_are_a_character(parts: list[bytes], expected: list[str]) -> None:
    assert deltas(parts) == expected


def test_half_a_character_before_a_stop_string_is_not_lost() -> None:
    assert deltas([b"\xe8\xae", b"\xa1STOP"], ["STOP"]) == ["", "计", ""]


def test_a_token_that_ends_and_begins_characters_shows_the_first() -> None:
    assert deltas([b"\xe8", b"\xae\xa1\xe7", b"\xae\x97"]) == ["", "计", "算", ""]
