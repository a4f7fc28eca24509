"""Extractive summaries: whole sentences of the text, each once and in order, whatever the model would say."""

import random
from collections.abc import Mapping

import pytest
from toy_engine import babbling, make_tokenizer, reciting, result_of, running

from model_store.errors import InvalidTask
from model_store.evidence import for_summary
from model_store.steps import finish
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.errors import InvalidRequest
from service.tasks.calls import ModelLimits, SamplingFields, Strategy, SummarizeCall
from service.tasks.extract import SentenceAutomaton
from service.tasks.sampling import decoding_for
from service.tasks.summarize import Summarizer

TASK = Task(
    name="summarize",
    kind="summarize",
    template="Text: {text}\nSummary:",
    document="text",
    evidence=40,
    extractive=True,
    sampling={"max_new_tokens": 120, "temperature": 0},
)
TEXT = "The sea is wide. The ship left the harbour. The ship sank in the sea. Nobody saw the ship again."
LIMITS = ModelLimits(256, 64)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def walk(automaton: SentenceAutomaton, tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Output ids of a random walk to the end of the text."""
    ids: list[int] = []
    while not ids or ids[-1] != tokenizer.eos_id:
        ids.append(rng.choice(list(automaton(ids))))
    return ids[:-1]


@pytest.mark.parametrize("seed", range(20))
def test_every_walk_is_whole_sentences_in_order(tokenizer: Tokenizer, seed: int) -> None:
    sentences = ["One goes.", "One goes away.", "Two stay here.", "One goes."]
    said = tokenizer.decode(walk(SentenceAutomaton(sentences, tokenizer), tokenizer, random.Random(seed)))
    rest = said.strip()
    for sentence in sentences:
        rest = rest.removeprefix(sentence).strip()
    assert said.strip() and not rest


def test_nothing_but_the_end_follows_the_last_sentence(tokenizer: Tokenizer) -> None:
    automaton = SentenceAutomaton(["First.", "Last."], tokenizer)
    assert automaton(tokenizer.encode(" Last.")) == [tokenizer.eos_id]
    assert tokenizer.eos_id not in automaton([])


def test_no_sentences_leave_only_the_end(tokenizer: Tokenizer) -> None:
    assert SentenceAutomaton(["", "  "], tokenizer)([]) == [tokenizer.eos_id]


async def _summary(tokenizer: Tokenizer, model: object, text: str = TEXT, **fields: object) -> str:
    call = SummarizeCall(text, sampling=SamplingFields(**fields))
    async with running(model, tokenizer, {"summarize": TASK}, LIMITS) as (runner, _):
        return (await result_of(runner.summarize(call))).summary


@pytest.mark.asyncio
@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_model_that_babbles_still_says_sentences_of_the_text(
    tokenizer: Tokenizer, temperature: float
) -> None:
    said = await _summary(tokenizer, babbling(tokenizer.vocab_size), temperature=temperature, seed=3)
    allowed = finish(for_summary(TEXT, 40)).text.split("\n")
    rest = said
    for sentence in allowed:
        rest = rest.replace(sentence, "", 1)
    assert said and not rest.strip()


@pytest.mark.asyncio
async def test_the_model_chooses(tokenizer: Tokenizer) -> None:
    said = "The ship sank in the sea."
    model = reciting(tokenizer, {"Summary:": " " + said})
    assert await _summary(tokenizer, model) == said


def test_extractive_needs_a_summary_task_with_evidence() -> None:
    with pytest.raises(InvalidTask, match="extractive: belongs to"):
        Task.from_dict({**TASK.to_dict(), "evidence": 0})
    with pytest.raises(InvalidTask, match="extractive: must be true or false"):
        Task.from_dict({**TASK.to_dict(), "extractive": "yes"})
    assert Task.from_dict(TASK.to_dict()) == TASK


@pytest.mark.asyncio
async def test_lengths_have_no_meaning_for_sentences_of_the_text(tokenizer: Tokenizer) -> None:
    for field in ({"ignore_eos": True}, {"min_new_tokens": 5}):
        with pytest.raises(InvalidRequest, match=rf"{next(iter(field))} must be (0|false) or left out for"):
            await _summary(tokenizer, babbling(tokenizer.vocab_size), **field)
    neutral = {"ignore_eos": False, "min_new_tokens": 0}
    assert await _summary(tokenizer, babbling(tokenizer.vocab_size), seed=3, **neutral)


def test_equal_sentences_leave_few_states(tokenizer: Tokenizer) -> None:
    automaton = SentenceAutomaton(["Ho."] * 200, tokenizer)
    output: list[int] = []
    for _ in range(3):
        output += tokenizer.encode(" Ho.")
        assert tokenizer.eos_id in automaton(output)
        assert len(automaton._reached(tuple(output))) == 1


@pytest.mark.parametrize("strategy", ["single", "map_reduce"])
def test_a_text_whose_evidence_does_not_fit_is_shortened_in_few_steps(
    tokenizer: Tokenizer, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_rendered, segments = 0, Task.segments

    def counting(self: Task, fields: Mapping[str, str]) -> list[tuple[str, bool]]:
        nonlocal num_rendered
        num_rendered += 1
        return segments(self, fields)

    monkeypatch.setattr(Task, "segments", counting)
    task = Task.from_dict({**TASK.to_dict(), "evidence": 400})
    decoding = decoding_for(SamplingFields(max_new_tokens=16), TASK, tokenizer)
    summarizer = Summarizer(task, tokenizer, decoding, ModelLimits(256))
    plotted = finish(summarizer.plot("🐉" * 4000, strategy, "truncate_left"))
    assert all(len(request.prompt_ids) + 16 <= 256 for request in plotted.requests)
    assert num_rendered <= 20 * len(plotted.requests)
