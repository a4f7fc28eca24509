"""Questions: spans of the context, scores that compare across windows, no answer, and many answers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from toy_engine import babbling, events_of, make_tokenizer, reciting, result_of, running

from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.job_stream import JobStream
from service.engine.sequence import SequenceRequest
from service.errors import InvalidRequest, PromptTooLong
from service.tasks import answers
from service.tasks.answers import MIN_SIDE_BY_SIDE
from service.tasks.calls import ModelLimits, QaCall, QaResult, SamplingFields
from service.tasks.events import Plan, Token

pytestmark = pytest.mark.asyncio
NO = "unanswerable"
TASK = Task(
    name="qa",
    kind="qa",
    template="Answer.\nText: {context}\nQuestion: {question}\nAnswer:",
    document="context",
    no_answer=NO,
    sampling={"max_new_tokens": 16, "temperature": 0},
)
CONTEXT = "Anna lives in Paris. Her brother Tom lives in New York City, far away!"
LIMITS = ModelLimits(256, 64)
ASKED = "Where?\nAnswer:"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


async def _ask(
    tokenizer: Tokenizer, call: QaCall, model: object = None, limits: ModelLimits = LIMITS
) -> QaResult:
    async with running(model or babbling(tokenizer.vocab_size), tokenizer, {"qa": TASK}, limits) as (
        runner,
        _,
    ):
        return await result_of(runner.answer(call))


async def test_the_answer_a_model_knows_is_found_with_its_offsets(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " New York City"})
    best = (await _ask(tokenizer, QaCall("Where?", CONTEXT), model)).answers[0]
    assert (best.answer, CONTEXT[best.start : best.end]) == ("New York City", "New York City")
    assert best.score > 0


@pytest.mark.parametrize("context", [CONTEXT, "计算机科学是一种科学。the sea", "Tom's 3.5\r\nmiles 👩‍👩‍👧 é"])
async def test_grounded_answers_are_slices_of_the_context(tokenizer: Tokenizer, context: str) -> None:
    result = await _ask(tokenizer, QaCall("Who?", context, num_answers=10, no_answer=False))
    assert result.answers
    assert all(context[a.start : a.end] == a.answer != "" for a in result.answers)


async def test_answers_are_distinct_and_sorted_by_score(tokenizer: Tokenizer) -> None:
    answers = (await _ask(tokenizer, QaCall("Who?", CONTEXT, num_answers=12, no_answer=False))).answers
    assert len({a.answer for a in answers}) == len(answers) == 12
    assert all(a.score >= b.score for a, b in itertools.pairwise(answers))


async def test_no_answer_wins_when_the_model_says_so(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " " + NO})
    best = (await _ask(tokenizer, QaCall("Where?", CONTEXT), model)).answers[0]
    assert (best.answer, best.start, best.end) == ("", None, None)
    assert best.score < 0


async def test_no_answer_is_never_given_when_it_is_not_allowed(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " " + NO})
    best = (await _ask(tokenizer, QaCall("Where?", CONTEXT, no_answer=False), model)).answers[0]
    assert best.answer != "" and best.score < 0


def _score(model: object, tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> float:
    total = 0.0
    ids = list(prompt)
    for token_id in answer:
        total += float(torch.log_softmax(model(ids), -1)[token_id])
        ids.append(token_id)
    return total


async def test_a_score_is_the_log_probability_over_that_of_no_answer(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " Paris"}, certainty=6)
    best = (await _ask(tokenizer, QaCall("Where?", CONTEXT), model)).answers[0]
    prompt = TASK.encode(tokenizer, {"context": CONTEXT, "question": "Where?"})
    yes, no = (
        _score(model, tokenizer, prompt, TASK.encode_answer(tokenizer, text)) for text in ("Paris", NO)
    )
    assert best.score == pytest.approx(yes - no, abs=1e-3)


def _garden(tokenizer: Tokenizer) -> object:
    """A model whose likeliest first token leads to unlikely answers."""
    first = {tokenizer.encode(" Tom")[0]: 0.55, tokenizer.encode(" Paris")[0]: 0.4}
    paris = tokenizer.encode(" Paris")

    def logits(ids: Sequence[int]) -> torch.Tensor:
        values = torch.full((tokenizer.vocab_size,), 1e-5)
        said = list(ids)[len(list(ids)) - len(paris) :]
        if tokenizer.decode(ids).endswith("Answer:"):
            for token_id, probability in first.items():
                values[token_id] = probability
        elif said == paris:
            values[tokenizer.eos_id] = 0.99
        else:
            for count in range(1, len(paris)):
                if list(ids)[-count:] == paris[:count]:
                    values[paris[count]] = 0.99
        return torch.log(values / values.sum())

    return logits


async def test_the_likeliest_answer_wins_over_the_likeliest_first_token(tokenizer: Tokenizer) -> None:
    call = QaCall("Where?", CONTEXT, no_answer=False)
    best = (await _ask(tokenizer, call, _garden(tokenizer))).answers[0]
    assert best.answer == "Paris"


async def test_the_search_finds_the_best_of_all_spans(tokenizer: Tokenizer) -> None:
    context = "Anna sea king Tom"
    model = babbling(tokenizer.vocab_size)
    best = (await _ask(tokenizer, QaCall("Who?", context, num_answers=20, no_answer=False), model)).answers[0]
    prompt = TASK.encode(tokenizer, {"context": context, "question": "Who?"})
    words = context.split()
    spans = [" ".join(words[i:j]) for i in range(4) for j in range(i + 1, 5)]
    highest = max(_score(model, tokenizer, prompt, TASK.encode_answer(tokenizer, s)) for s in spans)
    none = _score(model, tokenizer, prompt, TASK.encode_answer(tokenizer, NO))
    assert best.score >= highest - none - 1e-3


async def test_an_answer_in_any_window_is_found(tokenizer: Tokenizer) -> None:
    filler = "the king went to the sea, and the sea was cold. " * 12
    context = filler + "Anna lives in Paris. " + filler

    def model(ids: Sequence[int]) -> torch.Tensor:
        knows = "Anna lives" in tokenizer.decode(ids)
        return reciting(tokenizer, {ASKED: " Paris" if knows else " " + NO})(ids)

    result = await _ask(tokenizer, QaCall("Where?", context), model)
    assert result.num_windows > 2
    assert (result.answers[0].answer, result.answers[0].start) == ("Paris", context.index("Paris"))


async def test_windows_do_not_depend_on_the_length_of_the_question(tokenizer: Tokenizer) -> None:
    context = CONTEXT * 12
    async with running(babbling(tokenizer.vocab_size), tokenizer, {"qa": TASK}, LIMITS) as (runner, _):
        await result_of(runner.answer(QaCall("Who?", context)))
        again = await result_of(runner.answer(QaCall("Who lives in the sea?", context)))
    assert again.usage.cached_tokens > 0.6 * again.usage.prompt_tokens


async def test_a_context_that_repeats_the_answer_gives_its_first_place(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " sea"})
    context = "the king went to the sea, and the sea was cold."
    assert (await _ask(tokenizer, QaCall("Where?", context), model)).answers[0].start == 21


async def test_free_text_has_offsets_only_where_it_occurs(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " the cold sea"})
    best = (await _ask(tokenizer, QaCall("Where?", CONTEXT, grounded=False), model)).answers[0]
    assert (best.answer, best.start, best.end) == ("the cold sea", None, None)


async def test_free_text_that_occurs_has_its_offsets(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " Paris"})
    best = (await _ask(tokenizer, QaCall("Where?", CONTEXT, grounded=False), model)).answers[0]
    assert CONTEXT[best.start : best.end] == best.answer == "Paris"


async def test_free_text_may_say_that_there_is_no_answer(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " " + NO})
    best = (await _ask(tokenizer, QaCall("Where?", CONTEXT, grounded=False), model)).answers[0]
    assert (best.answer, best.start) == ("", None)


@pytest.mark.parametrize("grounded", [True, False])
async def test_the_streamed_answer_is_the_answer(tokenizer: Tokenizer, grounded: bool) -> None:
    async with running(babbling(tokenizer.vocab_size), tokenizer, {"qa": TASK}, LIMITS) as (runner, _):
        call = QaCall("Who?", CONTEXT, grounded=grounded, no_answer=False)
        events = await events_of(runner.answer(call))
    assert isinstance(events[0], Plan)
    assert "".join(e.text for e in events if isinstance(e, Token)) == events[-1].result.answers[0].answer


async def test_equal_calls_give_equal_results(tokenizer: Tokenizer) -> None:
    call = QaCall("Who?", CONTEXT, num_answers=5, sampling=SamplingFields(seed=1))
    first, second = [await _ask(tokenizer, call) for _ in range(2)]
    assert first.answers == second.answers


async def test_drawn_answers_are_grounded_too(tokenizer: Tokenizer) -> None:
    sampling = SamplingFields(temperature=1.0, seed=4)
    call = QaCall("Who?", CONTEXT, num_answers=3, no_answer=False, sampling=sampling)
    answers = (await _ask(tokenizer, call)).answers
    assert all(CONTEXT[a.start : a.end] == a.answer for a in answers)


async def test_an_answer_does_not_hold_a_stop_string(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " New York City"})
    call = QaCall("Where?", CONTEXT, no_answer=False, sampling=SamplingFields(stop=("City",)))
    assert "City" not in (await _ask(tokenizer, call, model)).answers[0].answer


async def test_scores_are_finite(tokenizer: Tokenizer) -> None:
    result = await _ask(tokenizer, QaCall("Who?", CONTEXT, num_answers=20))
    assert all(math.isfinite(a.score) for a in result.answers)


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (QaCall(" ", CONTEXT), "question"),
        (QaCall("Who?", ""), "context"),
        (QaCall("Who?", CONTEXT, num_answers=21), "num_answers"),
        (QaCall("Who?", CONTEXT, num_answers=0), "num_answers"),
        (QaCall("Who?", CONTEXT, sampling=SamplingFields(min_new_tokens=2)), "min_new_tokens"),
        (QaCall("Who?", CONTEXT, sampling=SamplingFields(no_repeat_ngram_size=2)), "no_repeat_ngram_size"),
        (QaCall("Who?", CONTEXT * 400), "context"),
    ],
)
async def test_a_call_that_is_not_legal_names_its_field(
    tokenizer: Tokenizer, call: QaCall, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _ask(tokenizer, call)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (QaCall("Who? " * 200, CONTEXT), "question"),
        (QaCall("Who?", CONTEXT, sampling=SamplingFields(max_new_tokens=250)), "max_new_tokens"),
    ],
)
async def test_what_leaves_no_room_for_the_context_is_named(
    tokenizer: Tokenizer, call: QaCall, param: str
) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await _ask(tokenizer, call)
    assert caught.value.param == param


EVIDENCE = replace(TASK, evidence=12)
LONG = "The sea is wide. " * 300 + "Tom lives in New\nYork City. He sings." + " The hill is high." * 300


async def _ask_of_evidence(tokenizer: Tokenizer, call: QaCall, model: object) -> QaResult:
    async with running(model, tokenizer, {"qa": EVIDENCE}, LIMITS) as (runner, _):
        return await result_of(runner.answer(call))


async def test_with_evidence_a_long_context_is_one_short_prompt(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {"does Tom live?\nAnswer:": " New York City"})
    result = await _ask_of_evidence(tokenizer, QaCall("Where does Tom live?", LONG), model)
    best = result.answers[0]
    assert result.num_windows == 1
    assert result.usage.prompt_tokens < LIMITS.n_positions
    # The model read a space where the context has a line break; the answer is the context's own text.
    assert best.answer == "New\nYork City" == LONG[best.start : best.end]


async def test_with_evidence_no_answer_reaches_into_another_sentence(tokenizer: Tokenizer) -> None:
    call = QaCall("Where does Tom live?", LONG, num_answers=20, no_answer=False)
    result = await _ask_of_evidence(tokenizer, call, babbling(tokenizer.vocab_size))
    assert all(LONG[a.start : a.end] == a.answer != "" for a in result.answers)
    sentences = [" ".join(part.split()) for part in LONG.split(".")]
    words = [" ".join(a.answer.split()).rstrip(".") for a in result.answers]
    assert all(any(text in sentence for sentence in sentences) for text in words)


async def test_evidence_that_does_not_fit_shrinks_until_it_does(tokenizer: Tokenizer) -> None:
    wide = "\U0001f409" * 400  # four bytes, hence tokens, each; no sentence anywhere
    call = QaCall("Where does Tom live?", wide, no_answer=False)
    result = await _ask_of_evidence(tokenizer, call, babbling(tokenizer.vocab_size))
    assert result.num_windows > 1
    assert result.answers[0].answer in wide


async def test_a_penalty_of_no_answer_moves_every_score(tokenizer: Tokenizer) -> None:
    model = reciting(tokenizer, {ASKED: " " + NO}, certainty=3)
    call = QaCall("Where?", CONTEXT, no_answer=False)
    plain = (await _ask(tokenizer, call, model)).answers[0]
    tasks = {"qa": replace(TASK, no_answer_penalty=200.0)}
    async with running(model, tokenizer, tasks, LIMITS) as (runner, _):
        moved = (await result_of(runner.answer(replace(call, no_answer=True)))).answers[0]
    assert moved.answer == plain.answer != ""
    assert moved.score == pytest.approx(plain.score + 200, abs=1e-3)


async def test_a_long_question_that_fits_beside_the_evidence_is_answered(tokenizer: Tokenizer) -> None:
    tasks = {"qa": replace(TASK, evidence=10)}
    call = QaCall("where is " + "ship " * 60, "The sea is wide. The ship left. " * 3)
    async with running(babbling(tokenizer.vocab_size), tokenizer, tasks, ModelLimits(512, 64)) as (runner, _):
        result = await result_of(runner.answer(call))
    assert result.num_windows == 1


DRAWN = SamplingFields(temperature=1.0, seed=4, max_new_tokens=6)
MANY_WINDOWS = "Anna lives in Paris. Her brother Tom lives in New York City. " * 120


@pytest.mark.parametrize("sampling", [DRAWN, SamplingFields(max_new_tokens=6)])
async def test_a_job_has_never_more_sequences_in_the_engine_than_it_was_admitted_with_or_a_few(
    tokenizer: Tokenizer, sampling: SamplingFields
) -> None:
    call = QaCall("Who?", MANY_WINDOWS, num_answers=8, sampling=sampling)
    most = 0
    async with running(babbling(tokenizer.vocab_size), tokenizer, {"qa": TASK}, LIMITS) as (runner, engine):
        enqueue = engine.enqueue

        def counting(stream: JobStream, requests: Sequence[SequenceRequest]) -> range:
            nonlocal most
            indices = enqueue(stream, requests)
            most = max(most, engine.num_in_flight)
            return indices

        engine.enqueue = counting  # type: ignore[method-assign]
        result = await result_of(runner.answer(call))
    assert result.num_windows > MIN_SIDE_BY_SIDE
    assert most == result.num_windows


async def test_draws_that_wait_for_their_turn_change_no_answer(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = QaCall("Who?", CONTEXT * 9, num_answers=8, no_answer=False, sampling=DRAWN)
    waiting = await _ask(tokenizer, call)
    monkeypatch.setattr(answers, "MIN_SIDE_BY_SIDE", 10_000)  # all at once
    at_once = await _ask(tokenizer, call)
    assert waiting.answers == at_once.answers
    assert waiting.usage.completion_tokens == at_once.usage.completion_tokens
