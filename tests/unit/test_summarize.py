"""Summaries: one window, many chunks, reduction, and the same text streamed and not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import babbling, events_of, make_tokenizer, reciting, result_of, running

from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.errors import InvalidRequest, NotFound, PromptTooLong
from service.tasks.calls import ModelLimits, SamplingFields, SummarizeCall
from service.tasks.events import Chunk, Done, Plan, Token
from service.tasks.trimming import Trimmer

TASK = Task(
    name="summarize",
    kind="summarize",
    template="Text: {text}\nTL;DR:",
    document="text",
    sampling={"max_new_tokens": 20, "temperature": 0},
)
LONG = "Anna lives in Paris. Her brother Tom lives in New York City. " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def _babble(tokenizer: Tokenizer, limits: ModelLimits | None = None) -> object:
    return running(babbling(tokenizer.vocab_size), tokenizer, {"summarize": TASK}, limits)


@pytest.mark.asyncio
async def test_a_text_that_fits_is_one_chunk_without_reduction(tokenizer: Tokenizer) -> None:
    async with running(reciting(tokenizer, {"TL;DR:": " Anna  \n"}), tokenizer, {"summarize": TASK}) as (
        runner,
        _,
    ):
        result = await result_of(runner.summarize(SummarizeCall("Anna lives in Paris.")))
    assert result.summary == "Anna"
    assert [(c.start, c.end, c.summary) for c in result.chunks] == [(0, 20, "Anna")]


@pytest.mark.asyncio
async def test_chunks_of_a_long_text_tile_it(tokenizer: Tokenizer) -> None:
    async with _babble(tokenizer) as (runner, _):
        result = await result_of(runner.summarize(SummarizeCall(LONG)))
    assert len(result.chunks) > 3
    assert "".join(LONG[c.start : c.end] for c in result.chunks) == LONG


@pytest.mark.asyncio
@pytest.mark.parametrize("text", ["Anna lives in Paris.", LONG, "计算机科学是一种科学。" * 40])
async def test_deltas_joined_are_the_summary_and_it_is_trimmed(tokenizer: Tokenizer, text: str) -> None:
    sampling = SamplingFields(temperature=1.0, seed=11)
    async with _babble(tokenizer) as (runner, _):
        events = await events_of(runner.summarize(SummarizeCall(text, sampling=sampling)))
    summary = events[-1].result.summary
    assert "".join(e.text for e in events if isinstance(e, Token)) == summary == summary.strip()


@pytest.mark.asyncio
async def test_events_are_plan_chunks_tokens_done(tokenizer: Tokenizer) -> None:
    async with _babble(tokenizer) as (runner, _):
        events = await events_of(runner.summarize(SummarizeCall(LONG)))
    kinds = [type(event) for event in events]
    first_token, last_chunk = kinds.index(Token), len(kinds) - 1 - kinds[::-1].index(Chunk)
    assert kinds[0] is Plan and kinds[-1] is Done and last_chunk < first_token
    assert events[0].num_chunks == kinds.count(Chunk) == len(events[-1].result.chunks)


@pytest.mark.asyncio
async def test_summaries_that_do_not_fit_one_window_are_reduced_again(tokenizer: Tokenizer) -> None:
    text = LONG * 5
    async with running(
        reciting(tokenizer, {"TL;DR:": " Tom lives in New York City."}), tokenizer, {"summarize": TASK}
    ) as (runner, _):
        result = await result_of(runner.summarize(SummarizeCall(text)))
    joined = "\n".join(c.summary for c in result.chunks)
    assert len(tokenizer.encode(joined)) > 128  # they did not fit
    assert result.summary == "Tom lives in New York City."


@pytest.mark.asyncio
async def test_a_reduction_that_does_not_shrink_ends_with_the_joined_summaries(tokenizer: Tokenizer) -> None:
    sampling = SamplingFields(max_new_tokens=90, ignore_eos=True, temperature=1, seed=1)
    async with _babble(tokenizer) as (runner, _):
        call = SummarizeCall(LONG[:240], sampling=sampling)
        events = await events_of(runner.summarize(call))
    result = events[-1].result
    assert result.finish_reason == "length"
    assert "".join(e.text for e in events if isinstance(e, Token)) == result.summary != ""


@pytest.mark.asyncio
async def test_a_model_that_says_nothing_gives_an_empty_summary(tokenizer: Tokenizer) -> None:
    async with running(reciting(tokenizer, {"TL;DR:": ""}), tokenizer, {"summarize": TASK}) as (runner, _):
        result = await result_of(runner.summarize(SummarizeCall(LONG)))
    assert result.summary == ""


@pytest.mark.asyncio
async def test_more_chunks_than_a_job_may_have_are_refused_with_figures(tokenizer: Tokenizer) -> None:
    async with _babble(tokenizer, ModelLimits(128, 3)) as (runner, _):
        with pytest.raises(InvalidRequest, match=r"makes more than 3 sequences; at most 3 ") as caught:
            await result_of(runner.summarize(SummarizeCall(LONG)))
    assert caught.value.param == "text"


@pytest.mark.asyncio
async def test_strategy_single_refuses_a_text_that_does_not_fit(tokenizer: Tokenizer) -> None:
    async with _babble(tokenizer) as (runner, _):
        with pytest.raises(PromptTooLong) as caught:
            await result_of(runner.summarize(SummarizeCall(LONG, strategy="single")))
    assert caught.value.param == "text"


@pytest.mark.asyncio
async def test_strategy_single_keeps_the_end_of_a_text_when_told_to_truncate(tokenizer: Tokenizer) -> None:
    call = SummarizeCall(LONG, "single", "truncate_left", SamplingFields(max_new_tokens=20))
    async with _babble(tokenizer) as (runner, _):
        result = await result_of(runner.summarize(call))
    assert result.usage.dropped_tokens > 0
    assert result.chunks[0].start > 0 and result.chunks[0].end == len(LONG)


@pytest.mark.asyncio
async def test_strategy_single_refuses_when_not_even_an_empty_text_would_fit(tokenizer: Tokenizer) -> None:
    call = SummarizeCall(LONG, "single", "truncate_left", SamplingFields(max_new_tokens=126))
    async with _babble(tokenizer) as (runner, _):
        with pytest.raises(PromptTooLong, match=r"at most \d+") as caught:
            await result_of(runner.summarize(call))
    assert caught.value.param == "max_new_tokens"


@pytest.mark.asyncio
async def test_new_tokens_that_leave_no_room_for_text_are_refused_with_the_largest(
    tokenizer: Tokenizer,
) -> None:
    call = SummarizeCall(LONG, sampling=SamplingFields(max_new_tokens=126))
    async with _babble(tokenizer) as (runner, _):
        with pytest.raises(PromptTooLong, match=r"at most \d+") as caught:
            await result_of(runner.summarize(call))
    assert caught.value.param == "max_new_tokens"


@pytest.mark.asyncio
async def test_a_blank_text_is_refused(tokenizer: Tokenizer) -> None:
    async with _babble(tokenizer) as (runner, _):
        with pytest.raises(InvalidRequest) as caught:
            await result_of(runner.summarize(SummarizeCall(" \n\t ")))
    assert caught.value.param == "text"


@pytest.mark.asyncio
async def test_a_model_without_the_task_has_no_endpoint(tokenizer: Tokenizer) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer, {"other": TASK}) as (runner, _):
        with pytest.raises(NotFound):
            await result_of(runner.summarize(SummarizeCall("a")))


@pytest.mark.asyncio
async def test_usage_counts_every_sequence(tokenizer: Tokenizer) -> None:
    async with _babble(tokenizer) as (runner, _):
        result = await result_of(runner.summarize(SummarizeCall(LONG)))
    assert result.usage.prompt_tokens > len(tokenizer.encode(LONG))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text(alphabet=" \nab\u3000", max_size=5)))
def test_trimmed_pieces_joined_are_the_stripped_text(pieces: list[str]) -> None:
    trimmer = Trimmer()
    assert "".join(map(trimmer.push, pieces)) == "".join(pieces).strip()
