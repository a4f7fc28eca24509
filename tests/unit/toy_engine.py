"""The real engine and its thread, with a language model that is a function of the tokens so far."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch
from store_models import LINES
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from model_store.default_tasks import default_tasks
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.tokenizer_files import LoadedTokenizer
from service.engine.async_engine import AsyncEngine
from service.engine.batch import Batch, Scheduled, StepOutput
from service.engine.block_pool import BlockPool
from service.engine.engine import Engine
from service.engine.model.logits_processors import SampleRow
from service.engine.model.sampler import logprobs_of, sample
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence as EngineSequence
from service.engine.sequence import TokenLogprob
from service.engine.step_cost import Budget, StepCost
from service.tasks.calls import ModelLimits
from service.tasks.events import Done, Event
from service.tasks.run import Running, TaskRunner

LanguageModel = Callable[[Sequence[int]], torch.Tensor]
BLOCK_SIZE = 16
ENGLISH = (
    "Anna lives in Paris. Her brother Tom lives in New York City, far away! Do they write letters? "
    "Yes; every week, since 1,024 days. The answer is 3.5 miles (not 4). Don't ask why."
)


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE of 600 tokens; the end of text is 0."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*LINES, *[ENGLISH] * 20], trainer)
    return Tokenizer(LoadedTokenizer(backend, "byte_level", (0,)))


class ToyRunner:
    """Samples and scores with the engine's own sampler; logits come from a function instead of a network."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._language_model = language_model

    def execute(self, batch: Batch) -> list[StepOutput]:
        return [self._advance(item) for item in batch.items]

    def _advance(self, item: Scheduled) -> StepOutput:
        sequence, params = item.sequence, item.sequence.params
        scores = self._score(item)
        if not item.samples:
            return StepOutput(prompt_logprobs=scores)
        logits = self._language_model(sequence.token_ids)[None]
        row = SampleRow(params, sequence.request.prompt_ids, sequence.output_ids, sequence.request.ordinal)
        ids = tuple(sample(logits.clone(), [row], (0,)))
        news = () if params.logprobs is None else tuple(logprobs_of(logits, ids, params.logprobs))
        return StepOutput(ids, news, scores)

    def _score(self, item: Scheduled) -> tuple[TokenLogprob, ...]:
        sequence, first = item.sequence, item.sequence.next_scored
        if first is None:
            return ()
        end = min(sequence.num_computed_tokens + item.num_tokens + 1, sequence.num_prompt_tokens)
        return tuple(self._score_at(sequence, position) for position in range(first, end))

    def _score_at(self, sequence: EngineSequence, position: int) -> TokenLogprob:
        token_id = sequence.token_ids[position]
        if position == 0:
            return TokenLogprob(token_id, None)
        logits = self._language_model(sequence.token_ids[:position])[None]
        return logprobs_of(logits, [token_id], sequence.params.logprobs or 0)[0]


def babbling(vocab_size: int) -> LanguageModel:
    """A model whose logits depend on the last two tokens, by a fixed pseudo-random table."""

    def logits(ids: Sequence[int]) -> torch.Tensor:
        seed = (ids[-1] * 7919 + (ids[-2] if len(ids) > 1 else 1)) % 2**31
        return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 3

    return logits


def reciting(tokenizer: Tokenizer, answers: dict[str, str], certainty: float = 12.0) -> LanguageModel:
    """A model that knows by heart what follows a prompt that ends in a given text.

    Args:
        answers: ending of the prompt -> what to say before the end of text; the longest ending counts.
        certainty: logit of what it says over everything else.
    """
    spoken = {key: [*tokenizer.encode(text), tokenizer.eos_id] for key, text in answers.items()}
    endings = {key: tokenizer.encode(key) for key in answers}

    def logits(ids: Sequence[int]) -> torch.Tensor:
        values = torch.linspace(0, -1, tokenizer.vocab_size)
        said = _next_said(list(ids), endings, spoken)
        if said is not None:
            values[said] += certainty
        return values

    return logits


def _next_said(ids: list[int], endings: dict[str, list[int]], spoken: dict[str, list[int]]) -> int | None:
    for key, ending in sorted(endings.items(), key=lambda item: -len(item[1])):
        for count in range(len(spoken[key])):
            if ids[len(ids) - len(ending) - count :] == ending + spoken[key][:count]:
                return spoken[key][count]
    return None


@asynccontextmanager
async def running(
    language_model: LanguageModel,
    tokenizer: Tokenizer,
    tasks: dict[str, Task] | None = None,
    limits: ModelLimits | None = None,
    max_sequences: int = 1024,
) -> AsyncIterator[tuple[TaskRunner, AsyncEngine]]:
    """A task runner over a running engine."""
    scheduler = Scheduler(BlockPool(512, BLOCK_SIZE), Budget(256, 32), StepCost(min_prefill_rows=256))
    engine = AsyncEngine(lambda: Engine(scheduler, ToyRunner(language_model), tokenizer), max_sequences)
    await engine.start()
    runner = TaskRunner(engine, tokenizer, tasks or default_tasks(), limits or ModelLimits(128, 64))
    try:
        yield runner, engine
    finally:
        runner.close()
        await engine.stop()
        scheduler.check()


async def events_of(task: Running) -> list[Event]:
    """All events of a task."""
    async with task as events:
        return [event async for event in events]


async def result_of(task: Running) -> Any:
    """The result of a task."""
    last = (await events_of(task))[-1]
    assert isinstance(last, Done)
    return last.result
