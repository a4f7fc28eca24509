"""The task runner: generation, choices, tasks of the manifest, refusals, and jobs that are left."""

import asyncio
import threading
from dataclasses import replace

import pytest
import tokenizers
from toy_engine import babbling, events_of, make_tokenizer, reciting, result_of, running

from model_store.default_tasks import default_tasks
from model_store.steps import finish
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.tokenizer_files import LoadedTokenizer
from service.engine.sequence import SamplingParams, SequenceRequest
from service.errors import InvalidRequest, NotFound, PromptTooLong, QueueFull
from service.tasks.calls import GenerateCall, QaCall, SamplingFields, SummarizeCall, TaskCall
from service.tasks.events import Done, Token
from service.tasks.fitting import fit_text
from service.tasks.job import timings
from service.tasks.sampling import decoding_for

pytestmark = pytest.mark.asyncio

SENTIMENT = Task(
    name="sentiment", kind="choice", template="Text: {text}\nMood:", document="text", labels=("good", "bad")
)
REPLY = Task(name="reply", kind="generate", template="A: {line}\nB:", document="line", stop=("\n",))
TASKS = {task.name: task for task in (SENTIMENT, REPLY, *default_tasks().values())}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


async def _generate(tokenizer: Tokenizer, call: GenerateCall) -> object:
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (runner, _):
        return await result_of(runner.generate(call))


async def test_streamed_deltas_joined_are_the_final_texts(tokenizer: Tokenizer) -> None:
    call = GenerateCall(("the king", "计算机"), n=3, sampling=SamplingFields(seed=5, max_new_tokens=20))
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (runner, _):
        *tokens, done = await events_of(runner.generate(call))
    assert isinstance(done, Done)
    for choice in done.result.choices:
        joined = "".join(e.text for e in tokens if isinstance(e, Token) and e.index == choice.index)
        assert joined == choice.text


async def test_an_event_says_so_if_the_next_one_waits_for_nothing(tokenizer: Tokenizer) -> None:
    call = GenerateCall(
        ("the king",), n=4, sampling=SamplingFields(seed=5, max_new_tokens=9, ignore_eos=True)
    )
    followed, waited, turns = [], [], list[int]()
    call_soon = asyncio.get_running_loop().call_soon
    async with (
        running(babbling(tokenizer.vocab_size), tokenizer) as (runner, _),
        runner.generate(call) as events,
    ):
        call_soon(turns.append, 1)
        async for event in events:
            waited.append(bool(turns))
            followed.append(isinstance(event, Token) and event.is_followed)
            turns.clear()
            call_soon(turns.append, 1)
    assert not any(is_followed and waits for is_followed, waits in zip(followed, waited[1:], strict=False))
    assert sum(followed) >= 9  # the samples of a step come together


async def test_choices_are_numbered_by_prompt_and_then_sample(tokenizer: Tokenizer) -> None:
    sampling = SamplingFields(seed=1, max_new_tokens=8)
    result = await _generate(tokenizer, GenerateCall(("Anna", "Tom"), n=2, echo=True, sampling=sampling))
    assert [c.index for c in result.choices] == [0, 1, 2, 3]
    assert [c.text[:3] for c in result.choices] == ["Ann", "Ann", "Tom", "Tom"]


async def test_samples_of_one_prompt_differ(tokenizer: Tokenizer) -> None:
    sampling = SamplingFields(seed=1, max_new_tokens=12)
    result = await _generate(tokenizer, GenerateCall(("the",), n=5, sampling=sampling))
    assert len({c.text for c in result.choices}) == 5


async def test_the_reported_seed_reproduces_the_texts(tokenizer: Tokenizer) -> None:
    first = await _generate(tokenizer, GenerateCall(("the",), n=2))
    again = await _generate(tokenizer, GenerateCall(("the",), n=2, sampling=SamplingFields(seed=first.seed)))
    assert [c.text for c in first.choices] == [c.text for c in again.choices]


async def test_a_drawn_seed_survives_readers_that_know_only_doubles(tokenizer: Tokenizer) -> None:
    result = await _generate(tokenizer, GenerateCall(("the",), sampling=SamplingFields(max_new_tokens=1)))
    assert 0 <= result.seed < 2**53


async def test_an_empty_prompt_is_the_end_of_text_token(tokenizer: Tokenizer) -> None:
    result = await _generate(tokenizer, GenerateCall(("",), sampling=SamplingFields(max_new_tokens=1)))
    assert result.usage.prompt_tokens == 1


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (SamplingFields(min_new_tokens=9, max_new_tokens=8), "min_new_tokens"),
        (SamplingFields(min_new_tokens=129), "min_new_tokens"),
        (SamplingFields(logit_bias=((5, 1.0), (6, 1.0), (5, 2.0))), "logit_bias"),
    ],
)
async def test_fields_that_contradict_each_other_are_refused(
    tokenizer: Tokenizer, sampling: SamplingFields, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _generate(tokenizer, GenerateCall(("Anna",), sampling=sampling))
    assert caught.value.param == param


async def test_a_task_that_wants_long_texts_says_how_long(tokenizer: Tokenizer) -> None:
    task = replace(default_tasks()["generate"], sampling={"min_new_tokens": 10})
    call = GenerateCall(("Anna",), sampling=SamplingFields(max_new_tokens=9))
    async with running(babbling(tokenizer.vocab_size), tokenizer, {"generate": task}) as (runner, _):
        with pytest.raises(InvalidRequest, match="at least 10") as caught:
            await result_of(runner.generate(call))
    assert caught.value.param == "max_new_tokens"


async def test_a_default_length_is_clamped_to_what_fits(tokenizer: Tokenizer) -> None:
    call = GenerateCall((tuple([300] * 120),), sampling=SamplingFields(ignore_eos=True))
    result = await _generate(tokenizer, call)
    assert (result.usage.completion_tokens, result.choices[0].finish_reason) == (8, "length")


async def test_an_explicit_length_that_does_not_fit_is_refused_with_the_largest(
    tokenizer: Tokenizer,
) -> None:
    call = GenerateCall((tuple([300] * 120),), sampling=SamplingFields(max_new_tokens=9))
    with pytest.raises(PromptTooLong, match="at most 8 ") as caught:
        await _generate(tokenizer, call)
    assert caught.value.param == "max_new_tokens"


async def test_a_prompt_too_long_names_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await _generate(tokenizer, GenerateCall(("a", "b " * 500)))
    assert caught.value.param == "prompt.1"


async def test_truncation_drops_the_start_of_the_prompt_and_says_how_much(tokenizer: Tokenizer) -> None:
    ids = (300, *range(250, 400))
    call = GenerateCall((ids,), overflow="truncate_left", sampling=SamplingFields(max_new_tokens=28))
    result = await _generate(tokenizer, call)
    assert (result.usage.dropped_tokens, result.usage.prompt_tokens) == (51, 100)


async def test_scoring_a_prompt_generates_nothing(tokenizer: Tokenizer) -> None:
    sampling = SamplingFields(max_new_tokens=0)
    call = GenerateCall(("Anna lives in Paris",), echo=True, logprobs=2, allow_zero=True, sampling=sampling)
    choice = (await _generate(tokenizer, call)).choices[0]
    assert choice.text == "Anna lives in Paris"
    assert "".join(score.text for score in choice.logprobs) == choice.text
    assert [score.logprob is None for score in choice.logprobs][:2] == [True, False]


async def test_token_offsets_point_into_the_text(tokenizer: Tokenizer) -> None:
    sampling = SamplingFields(max_new_tokens=6, seed=3)
    call = GenerateCall(("计算 the sea",), echo=True, logprobs=0, sampling=sampling)
    choice = (await _generate(tokenizer, call)).choices[0]
    whole = [s for s in choice.logprobs if s.text and "\ufffd" not in s.text]
    assert whole
    assert all(choice.text[s.offset :].startswith(s.text) for s in whole)


async def test_offsets_start_at_the_text_when_there_is_no_echo(tokenizer: Tokenizer) -> None:
    call = GenerateCall(("the king",), logprobs=1, sampling=SamplingFields(max_new_tokens=3, seed=3))
    assert next(iter((await _generate(tokenizer, call)).choices[0].logprobs)).offset == 0


async def test_no_new_tokens_without_echo_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _generate(tokenizer, GenerateCall(("a",), sampling=SamplingFields(max_new_tokens=0)))
    assert caught.value.param == "max_new_tokens"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.5),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_k", -1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("no_repeat_ngram_size", -1),
        ("frequency_penalty", 3.0),
        ("presence_penalty", -3.0),
        ("seed", 2**63),
        ("stop", ("",)),
        ("stop", tuple("abcdefghi")),
        ("stop", ("x" * 1001,)),
        ("stop_token_ids", (10_000,)),
        ("logit_bias", ((-1, 1.0),)),
        ("max_new_tokens", 0),
    ],
)
async def test_a_value_out_of_range_names_its_field(tokenizer: Tokenizer, field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _generate(tokenizer, GenerateCall(("a",), sampling=SamplingFields(**{field: value})))
    assert caught.value.param == field


@pytest.mark.parametrize("n", [0, 17])
async def test_n_out_of_range_is_refused(tokenizer: Tokenizer, n: int) -> None:
    with pytest.raises(
        InvalidRequest, match="n has a value that is not legal; legal: an integer from 1 to 16"
    ):
        await _generate(tokenizer, GenerateCall(("a",), n=n))


async def test_more_sequences_than_a_job_may_have_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _generate(tokenizer, GenerateCall(("a",) * 10, n=16))
    assert caught.value.param == "prompt"


async def test_a_lone_surrogate_is_refused_by_field(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _generate(tokenizer, GenerateCall(("a\ud800",)))
    assert caught.value.param == "prompt"


async def test_a_full_queue_is_refused_before_any_event(tokenizer: Tokenizer) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer, max_sequences=2) as (runner, _):
        with pytest.raises(QueueFull):
            await result_of(runner.generate(GenerateCall(("a",), n=3)))


@pytest.mark.parametrize(
    "call",
    [
        GenerateCall(("the king",), n=4, sampling=SamplingFields(ignore_eos=True)),
        SummarizeCall("Anna lives in Paris. " * 60, sampling=SamplingFields(max_new_tokens=20)),
        QaCall("Where?", "Anna lives in Paris. " * 60, sampling=SamplingFields(max_new_tokens=8)),
    ],
)
async def test_leaving_a_job_aborts_all_of_it(tokenizer: Tokenizer, call: object) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (runner, engine):
        prepare = {
            GenerateCall: runner.generate,
            SummarizeCall: runner.summarize,
            QaCall: runner.answer,
        }[type(call)]
        async with prepare(call) as running_events:
            async for _ in running_events:
                break
        assert engine.num_in_flight == 0
        assert not engine._streams


async def test_a_choice_prefers_the_likelier_label_and_its_scores_sum_to_one(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {"\nMood:": " bad"})
    async with running(model, tokenizer, TASKS) as (runner, _):
        result = await result_of(runner.run_task(TaskCall("sentiment", {"text": "Don't ask"})))
    assert result.label == "bad"
    assert sum(result.scores.values()) == pytest.approx(1)


async def test_labels_are_scored_and_not_generated(tokenizer: Tokenizer) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer, TASKS) as (runner, _):
        result = await result_of(runner.run_task(TaskCall("sentiment", {"text": "Paris"})))
    assert result.usage.completion_tokens == 0


async def test_a_choice_refuses_sampling_fields_that_change_nothing(tokenizer: Tokenizer) -> None:
    call = TaskCall("sentiment", {"text": "a"}, sampling=SamplingFields(top_k=5))
    async with running(babbling(tokenizer.vocab_size), tokenizer, TASKS) as (runner, _):
        with pytest.raises(InvalidRequest) as caught:
            await result_of(runner.run_task(call))
    assert caught.value.param == "top_k"


async def test_a_task_renders_its_template_and_stops_at_its_stop_string(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {"A: Anna\nB:": " Tom lives\nin"})
    async with running(model, tokenizer, TASKS) as (runner, _):
        call = TaskCall("reply", {"line": "Anna"}, sampling=SamplingFields(temperature=0))
        result = await result_of(runner.run_task(call))
    assert result.choices[0].text == " Tom lives"


async def test_a_task_truncates_its_document_and_never_its_template(tokenizer: Tokenizer) -> None:
    fields = {"line": "Anna lives in Paris. " * 80}
    sampling = SamplingFields(max_new_tokens=20, temperature=0)
    call = TaskCall("reply", fields, echo=True, overflow="truncate_left", sampling=sampling)
    async with running(babbling(tokenizer.vocab_size), tokenizer, TASKS) as (runner, _):
        result = await result_of(runner.run_task(call))
    text = result.choices[0].text
    assert text.startswith("A:") and " Paris. \nB:" in text
    assert result.usage.dropped_tokens > 0 and result.usage.prompt_tokens <= 108


@pytest.mark.parametrize("fields", [{}, {"line": "a", "other": "b"}])
async def test_missing_and_unknown_fields_are_named(tokenizer: Tokenizer, fields: dict[str, str]) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer, TASKS) as (runner, _):
        with pytest.raises(InvalidRequest) as caught:
            await result_of(runner.run_task(TaskCall("reply", fields)))
    assert caught.value.param in ("line", "other")


async def test_an_unknown_field_of_any_length_is_not_repeated(tokenizer: Tokenizer) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer, TASKS) as (runner, _):
        with pytest.raises(InvalidRequest) as caught:
            await result_of(runner.run_task(TaskCall("reply", {"line": "a", "secret" * 100: "b"})))
    assert caught.value.param is None and "secret" not in caught.value.message


async def test_a_deadline_that_passes_ends_the_job(tokenizer: Tokenizer) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (runner, engine):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(-1):
                await events_of(runner.summarize(SummarizeCall("Anna lives in Paris. " * 60)))
        assert engine.num_in_flight == 0


async def test_the_parts_of_the_time_are_within_the_whole(tokenizer: Tokenizer) -> None:
    """What a sequence measures itself begins after its job's own time does."""
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (_, engine):
        async with engine.submit([SequenceRequest((1,), SamplingParams(max_new_tokens=1))]) as job:
            arrived_at = min(sequence.arrived_at for sequence in job.unfinished.values())
            assert job.submitted_at <= arrived_at
            assert [output.finish_reason async for output in job][-1] == "length"
        parts = timings(job)
    assert 0 < parts.queue_ms + parts.prefill_ms <= parts.total_ms


async def test_an_option_of_another_kind_is_refused_by_name(tokenizer: Tokenizer) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer, TASKS) as (runner, _):
        with pytest.raises(InvalidRequest) as caught:
            await result_of(runner.run_task(TaskCall("reply", {"line": "a"}, num_answers=2)))
    assert caught.value.param == "num_answers"


async def test_an_unknown_task_is_not_found(tokenizer: Tokenizer) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer, TASKS) as (runner, _):
        with pytest.raises(NotFound):
            await result_of(runner.run_task(TaskCall("no-such-task", {})))


async def test_a_large_prompt_leaves_the_event_loop_free(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, threads = Tokenizer.encode, set()

    def noting(self: Tokenizer, text: str) -> list[int]:
        if len(text) > 1000:
            threads.add(threading.current_thread())
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", noting)
    async with running(babbling(tokenizer.vocab_size), tokenizer) as (runner, _):
        with pytest.raises(PromptTooLong):
            await result_of(runner.generate(GenerateCall(("the king " * 40000,))))
    assert threads and threading.main_thread() not in threads


async def test_a_prompt_that_is_cut_keeps_what_the_tokenizer_puts_before_it(tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    with_bos = Tokenizer(LoadedTokenizer(backend, "byte_level", (0,), bos_ids=(5,)))
    decoding = decoding_for(SamplingFields(max_new_tokens=4), default_tasks()["generate"], with_bos)
    whole = finish(fit_text(with_bos, "the king", decoding, 64, "error", "prompt"))
    assert whole.prompt_ids == (5, *with_bos.encode("the king"))
    cut = finish(fit_text(with_bos, "the king " * 40, decoding, 24, "truncate_left", "prompt"))
    assert (cut.prompt_ids[0], len(cut.prompt_ids)) == (5, 20)
    assert cut.prompt_ids[1:] == tuple(with_bos.encode("the king " * 40)[-19:])
