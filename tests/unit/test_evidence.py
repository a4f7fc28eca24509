"""Evidence: which sentences are chosen, where they stand, and what a task renders of them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store import evidence
from model_store.borders import splits_character
from model_store.errors import InvalidTask
from model_store.evidence import SENTENCE_BREAK, Evidence, whole
from model_store.steps import finish
from model_store.task import Task

STORY = (
    "The village lies by a lake. Anna Berg built the mill in 1871. It burned down ten years later.\n"
    "Her brother kept sheep. The mill was rebuilt by the village in 1890."
)


def for_question(text: str, question: str, num_words: int) -> Evidence:
    return finish(evidence.for_question(text, question, num_words))


def for_summary(text: str, num_words: int) -> Evidence:
    return finish(evidence.for_summary(text, num_words))


def pieces(evidence: Evidence) -> list[tuple[int, int]]:
    """Each sentence of `evidence.text`, as (start, end) in it."""
    ends = [start - len(SENTENCE_BREAK) for start in evidence.starts[1:]]
    return list(zip(evidence.starts, [*ends, len(evidence.text)], strict=True))


def test_the_best_sentence_comes_first() -> None:
    found = for_question(STORY, "Who built the mill?", 1)
    assert found.text == "Anna Berg built the mill in 1871."


def test_sentences_are_taken_until_the_words_are_enough() -> None:
    sizes = [len(for_question(STORY, "Who built the mill?", n).starts) for n in (1, 7, 8, 1000)]
    assert sizes == [1, 1, 2, 5]


def test_a_sentence_inherits_from_the_one_before() -> None:
    # Neither of the last two shares a word with the question; the one after the match is the likelier.
    found = for_question("Sun rose. Rain fell. Kate sang. It hurt. Dogs ran.", "What did Kate do?", 4)
    assert found.text == "Kate sang.\nIt hurt."


def test_other_forms_of_a_word_match() -> None:
    text = "Bread is old. The inventors were many. Salt is older."
    assert for_question(text, "Who is the inventor?", 1).text == "The inventors were many."


def test_without_a_common_word_the_first_sentences_are_taken() -> None:
    assert for_question(STORY, "?", 1).text == "The village lies by a lake."


BODY = [
    "The bridge was closed in March after engineers found cracks in two of its piers.",
    "Repairs will cost about four million dollars and take nine months.",
    "The ferry runs every twenty minutes until the bridge opens again.",
    "Residents of the west bank asked for lower fares on the ferry.",
]
PAGE = "{head}\n{text}\n{foot}\n\x0c"


def pages(head: str, foot: str) -> str:
    return "".join(PAGE.format(head=head, text=text, foot=foot.format(i + 1)) for i, text in enumerate(BODY))


@pytest.mark.parametrize("head", ["ACME Corp. Confidential - do not distribute.", "THE BRIDGE AND THE FERRY"])
@pytest.mark.parametrize(
    "foot", ["Page {} of 4. All rights reserved by the bridge.", "- {} -", "The ferry\n{}"]
)
def test_what_stands_on_every_page_is_weighed_less_than_the_text(head: str, foot: str) -> None:
    # As many words as the text has: the whole of it comes before any head or foot.
    found = for_summary(pages(head, foot), sum(len(text.split()) for text in BODY))
    assert found.text.split(SENTENCE_BREAK) == BODY


def test_a_text_is_taken_once_however_often_it_stands_there() -> None:
    assert for_summary("All work and no play makes Jack a dull boy. " * 200, 60).text.count("Jack") == 1
    assert for_summary(" ".join(BODY + BODY), 1000).text.split(SENTENCE_BREAK) == BODY
    assert (
        for_question(
            "\n\n".join(["Who built it?  The  mill.", "Anna built it."] * 3), "Who built it?", 99
        ).text.count("Anna")
        == 1
    )


def test_rows_that_differ_in_their_numbers_are_different_texts() -> None:
    rows = "\n\n".join(f"Revenue in {year} was {year - 2000} million." for year in range(2015, 2020))
    assert len(for_summary(rows, 1000).starts) == 5


def test_words_meet_whatever_hyphens_nobody_sees() -> None:
    text = "Bread is old. The com\u00adpany grew. Salt is older."
    assert for_question(text, "What did the company do?", 1).text == "The com\u00adpany grew."


def test_a_text_without_words_is_cut_between_its_characters() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    text = "".join(family + chr(0x1F400 + number) for number in range(60))
    found = for_question(text, "Who?", 10_000)
    assert found.text.replace(SENTENCE_BREAK, "") == text
    assert len(found.starts) > 4
    assert all(not splits_character(text, found.origin(start, end)[0]) for start, end in pieces(found))


def test_a_summary_reads_in_the_order_of_the_document() -> None:
    found = for_summary(STORY, 15)
    assert [STORY.index(line) for line in found.text.split(SENTENCE_BREAK)] == sorted(found.origins)
    assert "mill" in found.text


def test_line_breaks_inside_a_sentence_become_spaces_and_places_stay_exact() -> None:
    text = "Nothing here. The king of\nthe north came home."
    found = for_question(text, "Who came home?", 1)
    assert found.text == "The king of the north came home."
    start = found.text.index("of the north")
    assert text[slice(*found.origin(start, start + len("of the north")))] == "of\nthe north"


def test_a_text_without_sentences_is_read_in_pieces() -> None:
    text = "word " * 2000 + "needle " + "word " * 2000
    found = for_question(text, "needle", 10)
    assert "needle" in found.text
    assert len(found.text) <= 300


def test_chinese_has_no_spaces_and_is_bounded_all_the_same() -> None:
    found = for_question("学而时习之不亦说乎。" * 500, "学而时习之", 60)
    assert 0 < len(found.text) < 60 * 6 + 300


@pytest.mark.parametrize("text", ["", " \n ", "..."])
def test_empty_documents_give_little_and_no_error(text: str) -> None:
    assert for_question(text, "Who?", 20).text == text.strip()
    assert for_summary(text, 20).text == text.strip()


@given(st.text(max_size=600), st.text(max_size=40), st.integers(1, 80))
def test_every_sentence_stands_in_the_document_where_it_says(text: str, question: str, words: int) -> None:
    for found in (for_question(text, question, words), for_summary(text, words), whole(text)):
        for start, end in pieces(found):
            origin = slice(*found.origin(start, end))
            assert len(text[origin]) == end - start
            differing = [a for a, b in zip(text[origin], found.text[start:end], strict=True) if a != b]
            assert all(character.isspace() for character in differing)


@given(st.text(alphabet="ab. \n", max_size=400), st.integers(1, 50))
def test_no_sentence_is_taken_twice(text: str, words: int) -> None:
    found = for_question(text, "ab", words)
    spans = sorted(found.origin(start, end) for start, end in pieces(found))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def qa_task(evidence: int) -> Task:
    return Task("qa", "qa", "{context}\nQ: {question}\nA:", document="context", evidence=evidence)


def test_a_task_renders_its_evidence_and_keeps_it_in_its_definition() -> None:
    task = qa_task(1)
    fields = {"context": STORY, "question": "Who built the mill?"}
    assert task.segments(fields)[0] == ("Anna Berg built the mill in 1871.", True)
    assert Task.from_dict(task.to_dict()) == task
    assert qa_task(0).segments(fields)[0] == (STORY, True)
    assert "evidence" not in qa_task(0).to_dict()


@pytest.mark.parametrize("value", [-1, 1.5, True, "many"])
def test_evidence_must_be_a_number_of_words(value: object) -> None:
    with pytest.raises(InvalidTask, match="evidence"):
        Task.from_dict(
            {**qa_task(0).to_dict(), "evidence": value},
        )


def test_evidence_belongs_to_questions_and_summaries() -> None:
    with pytest.raises(InvalidTask, match="evidence: belongs to"):
        Task("say", "generate", "{text}", document="text", evidence=5)


def test_sentences_beyond_number_are_weighed_in_groups() -> None:
    text = "q. " * 100_000 + "The needle is here. " + "q. " * 100_000
    found = for_question(text, "Where is the needle?", 5)
    assert "needle" in found.text
    assert len(found.text) <= 300


@given(st.text(alphabet="🐉é学a ,.", min_size=200, max_size=900), st.integers(1, 40))
def test_evidence_is_bounded_in_bytes_whatever_the_script(text: str, words: int) -> None:
    for found in (for_summary(text, words), for_question(text, "a é", words)):
        assert len(found.text.replace(SENTENCE_BREAK, "").encode()) <= words * 6 + 300


def test_a_long_document_is_read_in_many_steps() -> None:
    text = "Nobody came. The needle lies in the hay. " * 2000
    for steps in (evidence.for_question(text, "Where is the needle?", 5), evidence.for_summary(text, 5)):
        assert sum(1 for _ in steps) > 60
