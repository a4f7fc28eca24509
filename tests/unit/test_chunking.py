"""Chunks and windows: they tile or cover, they fit, and they end where a sentence does if they can."""

# ruff: noqa: RUF001 -- Chinese punctuation is a case

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import make_tokenizer

from model_store.borders import clause_ends, sentence_ends, splits_character, word_ends
from model_store.steps import Steps, finish
from model_store.tokenizer import Tokenizer
from service.errors import PromptTooLong
from service.tasks import documents
from service.tasks.chunking import Excess, split, stripped, windows
from service.tasks.documents import Document, Span, borders_of, read_document, token_starts

TOKENIZER = make_tokenizer()
SOME = settings(deadline=None, derandomize=True, max_examples=120)
PIECES = [
    "Anna lives in Paris. ",
    "Do they write letters? ",
    "one, two; three ",
    "3.5 miles ",
    "Mr. Tom ",
    "计算机科学。",
    "是一种科学，计算机！",
    "word ",
    "\r\n",
    "\n\n",
    "   ",
    "👩‍👩‍👧 ",
    "e\u0301",
    "x" * 30,
    "🙂",
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map("".join)
WILD = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


def _excess(text: str, capacity: int) -> Excess:
    """The tokens of a chunk as a prompt would have them, beyond the capacity."""

    def excess(start: int, end: int) -> Steps[int]:
        yield
        return len(TOKENIZER.encode(" " + text[start:end].strip())) - capacity

    return excess


def _document(text: str) -> Document:
    document = finish(read_document(text, TOKENIZER))
    assert document is not None
    return document


def _split(text: str, capacity: int, most: int | None = None) -> list[Span]:
    return finish(split(_document(text), capacity, _excess(text, capacity), most))


def _windows(text: str, capacity: int, overlap: int, most: int | None = None) -> list[Span]:
    return finish(windows(_document(text), capacity, overlap, _excess(text, capacity), most))


@SOME
@given(TEXTS | WILD, st.integers(16, 80))
def test_chunks_tile_the_text(text: str, capacity: int) -> None:
    chunks = _split(text, capacity)
    assert "".join(text[c.start : c.end] for c in chunks) == text
    assert all(c.start < c.end for c in chunks)


@SOME
@given(TEXTS | WILD, st.integers(16, 80))
def test_every_chunk_fits(text: str, capacity: int) -> None:
    excess = _excess(text, capacity)
    assert all(finish(excess(c.start, c.end)) <= 0 for c in _split(text, capacity))


@SOME
@given(TEXTS, st.integers(16, 80))
def test_no_chunk_is_blank_unless_all_is(text: str, capacity: int) -> None:
    chunks = _split(text, capacity)
    assert len(chunks) == 1 or all(text[c.start : c.end].strip() for c in chunks)


@pytest.mark.parametrize("sentence", ["Anna lives in Paris. ", "计算机科学是一种科学。", "Tom writes! "])
def test_chunks_end_at_sentences_where_there_are_some(sentence: str) -> None:
    text = sentence * 40
    assert all(c.end % len(sentence) == 0 for c in _split(text, 60))


def test_chunks_end_at_clauses_where_no_sentence_ends() -> None:
    text = "one two three, " * 60
    assert all(text[: c.end].endswith(", ") for c in _split(text, 60))


def test_chunks_end_at_words_where_no_clause_ends() -> None:
    text = "word " * 200
    assert all(text[: c.end].endswith(" ") for c in _split(text, 40))


def test_a_text_without_any_border_is_cut_where_tokens_end() -> None:
    assert len(_split("x" * 3000, 50)) > 5


@pytest.mark.parametrize("text", ["👩‍👩‍👧" * 40, "e\u0301" * 100, "a\r\n" * 100])
def test_a_cut_separates_nothing_that_is_read_as_one(text: str) -> None:
    assert not any(splits_character(text, c.end) for c in _split(text, 40))


def test_chunks_are_of_similar_size() -> None:
    text = "Anna lives in Paris. " * 80
    document = _document(text)
    sizes = [document.num_tokens(c.start, c.end) for c in _split(text, 100)]
    assert min(sizes) > 0.6 * max(sizes)


def test_a_text_that_fits_is_one_chunk() -> None:
    assert _split("Anna lives in Paris.", 40) == [Span(0, 20)]


def test_a_character_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(PromptTooLong):
        _split("🙂🙂", 1)


@SOME
@given(TEXTS | WILD, st.integers(24, 80))
def test_windows_cover_the_text_in_order(text: str, capacity: int) -> None:
    found = _windows(text, capacity, capacity // 4)
    assert found[0].start == 0 and found[-1].end == len(text)
    for before, after in itertools.pairwise(found):
        assert before.start < after.start <= before.end < after.end


@SOME
@given(TEXTS | WILD, st.integers(24, 80))
def test_every_window_fits(text: str, capacity: int) -> None:
    excess = _excess(text, capacity)
    assert all(finish(excess(w.start, w.end)) <= 0 for w in _windows(text, capacity, capacity // 4))


@SOME
@given(TEXTS, st.integers(32, 80), st.data())
def test_a_short_span_lies_wholly_in_some_window(text: str, capacity: int, data: st.DataObject) -> None:
    overlap = capacity // 4
    document = _document(text)
    start = data.draw(st.integers(0, len(text) - 1))
    end = document.reach(start, overlap - 2)
    if any(document.num_tokens(p, p + 1) > 4 for p in range(start, end)):
        return  # a character of very many tokens moves a border by as many
    assert any(w.start <= start and end <= w.end for w in _windows(text, capacity, overlap))


def test_tokenising_in_slices_counts_as_tokenising_at_once() -> None:
    text = "Anna lives in Paris. " * 2000
    assert abs(_document(text).num_tokens(0, len(text)) - len(TOKENIZER.encode(text))) <= 10


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("He left. She stayed. ", [9]),
        ("Mr. Tom left. He", [14]),
        ("J. R. Tolkien wrote. He", [21]),
        ("It is 3.5 miles. Go", [17]),
        ('"Go!" he said. Then', [6, 15]),
        ("他来了。她走了！好", [4, 8]),
        ("a\n\nb", [3]),
        ("see e.g. there", []),
    ],
)
def test_sentence_ends(text: str, ends: list[int]) -> None:
    found = [p for p in sentence_ends(text) if p < len(text)]
    assert found == ends


def test_clause_ends_stand_after_commas_and_line_breaks() -> None:
    assert clause_ends("a, b\nc，d 1,000") == [3, 5, 7]


def test_word_ends_stand_after_spaces_and_between_characters_without_spaces() -> None:
    assert word_ends("ab cd 计算") == [3, 6, 7, 8]


def test_stripping_keeps_the_offsets_of_what_is_left() -> None:
    assert stripped("xx  ab \n", Span(2, 8)) == Span(4, 6)


def test_a_long_document_takes_time_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = 0
    encode = Tokenizer.encode_with_offsets

    def counting(self: Tokenizer, text: str) -> object:
        nonlocal encoded
        encoded += len(text)
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode_with_offsets", counting)
    text = "Anna lives in Paris. " * 5000
    _split(text, 200)
    assert encoded <= 2 * len(text)


@pytest.mark.parametrize("room", [40, 400])
def test_planning_windows_reads_the_text_a_few_times_however_little_fits(room: int) -> None:
    """A prompt may hold little of a window that could be the whole document: where that little does not fit,
    windows are as small as a chunk. Each was planned by reading all that was left.
    """
    text = "word " * 20_000
    document = _document(text)
    num_read = 0

    def excess(start: int, end: int) -> Steps[int]:
        nonlocal num_read
        num_read += end - start
        yield
        return min(document.num_tokens(start, end) - room, 300)

    spans = finish(windows(document, document.num_tokens(0, len(text)), room // 4, excess))
    assert all(document.num_tokens(span.start, span.end) <= room for span in spans)
    assert len(spans) > 20_000 / room
    assert num_read < 30 * len(text)


def test_windows_grow_again_behind_what_let_them_shrink() -> None:
    text = "word " * 20_000
    document = _document(text)

    def excess(start: int, end: int) -> Steps[int]:
        yield
        return document.num_tokens(start, end) - 40 if start < 500 else 0

    spans = finish(windows(document, document.num_tokens(0, len(text)), 8, excess))
    assert len(spans) < 40


@pytest.mark.parametrize("unit", ["!", ".", "…", '."', "。", "\n", ", ", "——", "? ", "a. "])
def test_borders_of_a_million_marks_are_found_in_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit)) + "x"  # with a square of steps this would not end in a day
    assert sentence_ends(text) == sorted(set(sentence_ends(text)))
    assert all(0 < end <= len(text) for end in clause_ends(text))


@pytest.mark.parametrize("cut", [_split, lambda *given: _windows(given[0], given[1], 10, given[2])])
def test_cutting_ends_with_the_first_chunk_that_is_too_many(cut: Callable[..., list[Span]]) -> None:
    text = "Anna lives in Paris. " * 80
    whole = cut(text, 60, None)
    assert cut(text, 60, 3) == whole[:4] != whole
    assert cut(text, 60, len(whole)) == whole


def test_blank_chunks_do_not_count_for_too_many() -> None:
    assert len(_split("Anna" + " \n" * 3000 + "Tom", 40, 2)) == 2


@SOME
@given(TEXTS | WILD, st.integers(1, 40))
def test_a_document_is_read_to_its_end_only_if_it_has_no_more_tokens_than_are_of_use(
    text: str, most: int
) -> None:
    starts = finish(token_starts(text, TOKENIZER, most))
    num_words = sum(bool(text[a:b].strip()) for a, b in TOKENIZER.encode_with_offsets(text)[1])
    assert (starts is None) == (num_words > most)


def test_a_text_of_too_many_tokens_is_given_up_at_once() -> None:
    work, steps = token_starts("Anna lives in Paris. " * 100_000, TOKENIZER, 3000), 1
    with pytest.raises(StopIteration):
        while True:
            next(work)
            steps += 1
    assert steps < 5


def test_white_space_of_any_length_is_not_too_many_tokens() -> None:
    assert finish(read_document("Anna" + " \n" * 100_000 + "Tom", TOKENIZER, 10)) is not None


@settings(deadline=None, derandomize=True, max_examples=300)
@given(TEXTS | WILD, st.integers(1, 30))
def test_borders_found_piece_by_piece_are_those_of_the_whole_text(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_PIECE", size)
        found = finish(borders_of(text))
    assert found == (sentence_ends(text), clause_ends(text), word_ends(text))
