"""Ids made in steps are the ids made at once, and texts far too long are refused by their beginning."""

from collections.abc import Iterator
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import make_tokenizer

from model_store.steps import finish
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.errors import PromptTooLong
from service.tasks import rendering
from service.tasks.calls import ModelLimits, Overflow, QaCall, SamplingFields
from service.tasks.fitting import fit_fields, fit_text
from service.tasks.qa import Reader
from service.tasks.rendering import drop_tokens, encode, has_more_tokens, render
from service.tasks.sampling import decoding_for
from service.tasks.vocabulary import Vocabulary

TOKENIZER = make_tokenizer()
SOME = settings(deadline=None, derandomize=True, max_examples=200)
PIECES = [
    "Anna lives in Paris. ",
    "3.5 miles ",
    "计算机科学。",
    "don't_",
    "\r\n\n",
    "    ",
    "e\u0301",
    "👩‍👩‍👧",
    "x" * 90,
    "<|endoftext|>",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
WILD = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300)
TASK = Task(name="t", kind="generate", template="Text: {text}\nBy {name}:", document="text")
QA = Task(
    name="qa", kind="qa", template="{context}\nQuestion: {question}\nAnswer:", document="context", evidence=12
)
LONG = "Anna lives in Paris. " * 100_000


@pytest.fixture
def short_slices() -> Iterator[None]:
    """Slices of a few words, so that short texts have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "SLICE", 40)
        yield


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all texts that get tokenised."""
    lengths: list[int] = []
    plain = Tokenizer.encode

    def counting(self: Tokenizer, text: str) -> list[int]:
        lengths.append(len(text))
        return plain(self, text)

    monkeypatch.setattr(Tokenizer, "encode", counting)
    return lengths


@SOME
@given(TEXTS | WILD)
@pytest.mark.usefixtures("short_slices")
def test_ids_made_in_steps_are_those_made_at_once(text: str) -> None:
    assert finish(encode(TOKENIZER, text)) == TOKENIZER.encode(text)


@SOME
@given(TEXTS | WILD, st.integers(1, 200))
@pytest.mark.usefixtures("short_slices")
def test_tokens_dropped_in_steps_are_those_dropped_at_once(text: str, count: int) -> None:
    _, offsets = TOKENIZER.encode_with_offsets(text)
    expected = text[max(offsets[count][0], 1) :] if count < len(offsets) else ""
    assert finish(drop_tokens(TOKENIZER, text, count)) == expected


@pytest.mark.parametrize("task", [TASK, QA])
def test_a_prompt_rendered_in_steps_is_the_tasks_own(task: Task) -> None:
    fields = dict.fromkeys(task.fields, "Anna lives in Paris. <|endoftext|> Tom sings. " * 900)
    assert finish(render(task, TOKENIZER, fields)) == task.encode(TOKENIZER, fields)


def test_no_step_reads_more_than_a_slice_of_a_text_with_words(encoded: list[int]) -> None:
    finish(encode(TOKENIZER, LONG[:200_000]))
    assert max(encoded) <= rendering.SLICE


def test_a_text_without_words_is_cut_all_the_same(encoded: list[int]) -> None:
    finish(encode(TOKENIZER, "x" * 300_000))
    assert max(encoded) < 70_000


@pytest.mark.parametrize("text", ["Anna lives in Paris. " * 1000, "x" * 20_000, "计算机" * 5000])
def test_a_text_of_more_tokens_is_told_from_one_of_as_many(text: str) -> None:
    count = len(TOKENIZER.encode(text))
    assert not finish(has_more_tokens(TOKENIZER, text, count))
    assert finish(has_more_tokens(TOKENIZER, text, count // 3))


def test_a_prompt_far_too_long_is_refused_by_its_beginning(encoded: list[int]) -> None:
    decoding = decoding_for(SamplingFields(), TASK, TOKENIZER)
    with pytest.raises(PromptTooLong, match="more than 128 tokens; at most 127 leave room"):
        finish(fit_text(TOKENIZER, LONG, decoding, 128, "error", "prompt"))
    assert sum(encoded) < 20_000


@pytest.mark.parametrize("long", ["text", "name"])
@pytest.mark.parametrize("overflow", get_args(Overflow))
def test_a_field_far_too_long_is_refused_by_its_beginning_unless_it_may_be_cut(
    encoded: list[int], long: str, overflow: Overflow
) -> None:
    fields = {"text": "Anna", "name": "Tom", long: LONG[:400_000]}
    fitting = fit_fields(
        TASK, TOKENIZER, fields, decoding_for(SamplingFields(), TASK, TOKENIZER), 128, overflow
    )
    if long == "text" and overflow == "truncate_left":
        assert finish(fitting).num_dropped > 1000
        return
    with pytest.raises(PromptTooLong) as caught:
        finish(fitting)
    assert caught.value.param == "text" and sum(encoded) < 20_000


def test_a_prompt_a_little_too_long_is_refused_with_its_number_of_tokens() -> None:
    text = "Anna lives in Paris. " * 30
    decoding = decoding_for(SamplingFields(), TASK, TOKENIZER)
    with pytest.raises(PromptTooLong, match=f"makes a prompt of {len(TOKENIZER.encode(text))} tokens"):
        finish(fit_text(TOKENIZER, text, decoding, 128, "error", "prompt"))


def test_a_question_far_too_long_is_refused_by_its_beginning(encoded: list[int]) -> None:
    decoding = decoding_for(SamplingFields(max_new_tokens=8), QA, TOKENIZER)
    reader = Reader(QA, TOKENIZER, Vocabulary(TOKENIZER), decoding, ModelLimits(256))
    with pytest.raises(PromptTooLong) as caught:
        finish(reader.read(QaCall(LONG, "Anna lives in Paris.")))
    assert caught.value.param == "question" and sum(encoded) < 20_000
