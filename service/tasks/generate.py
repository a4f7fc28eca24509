"""Continues prompts: the plainest task, and what the OpenAI dialect runs through.

Choices come as the engine gives them, untrimmed. Read `chunking` and `summarize` next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.detokenizer import last_of_text
from service.engine.job_stream import JobStream
from service.engine.sequence import SequenceOutput, SequenceRequest
from service.errors import InvalidRequest
from service.tasks.calls import (
    Choice,
    GenerateCall,
    GenerateResult,
    ModelLimits,
    TaskCall,
    TokenScore,
)
from service.tasks.events import Done, Event, Token
from service.tasks.fitting import Fitted, check_unicode, fit_fields, fit_ids, fit_text
from service.tasks.job import timings, usage
from service.tasks.sampling import Decoding
from service.tasks.scores import Scorer, Scores


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that fits, and its text where it is to be echoed."""

    fitted: Fitted
    echo: str = ""


def fit_prompts(
    call: GenerateCall, tokenizer: Tokenizer, decoding: Decoding, limits: ModelLimits
) -> Steps[list[Prompt]]:
    """Tokenise the call's prompts.

    Raises:
        PromptTooLong: one does not fit and nothing may be dropped.
        InvalidRequest: one is no valid text, or has a token that the model does not know.
    """
    prompts: list[Prompt] = []
    for index, prompt in enumerate(call.prompts):
        param = "prompt" if len(call.prompts) == 1 else f"prompt.{index}"
        text = prompt if isinstance(prompt, str) else None
        if isinstance(prompt, str):
            check_unicode(param, prompt)
            fit = fit_text(tokenizer, prompt, decoding, limits.n_positions, call.overflow, param)
            fitted = yield from fit
        else:
            ids = list(prompt) or [tokenizer.eos_id]
            fitted = fit_ids(ids, decoding, limits.n_positions, call.overflow, param)
            if not all(0 <= token_id < tokenizer.vocab_size for token_id in fitted.prompt_ids):
                legal = f"token ids from 0 to {tokenizer.vocab_size - 1}"
                raise InvalidRequest(f"{param} must hold {legal}", param)
        prompts.append(Prompt(fitted, _echo(tokenizer, fitted, text) if call.echo else ""))
    return prompts


def fit_task(
    call: TaskCall, task: Task, tokenizer: Tokenizer, decoding: Decoding, limits: ModelLimits
) -> Steps[list[Prompt]]:
    """Render the prompt of a task of kind generate."""
    fitted = yield from fit_fields(task, tokenizer, call.fields, decoding, limits.n_positions, call.overflow)
    text = "".join(part for part, _ in task.segments(call.fields))
    return [Prompt(fitted, _echo(tokenizer, fitted, text) if call.echo else "")]


def _echo(tokenizer: Tokenizer, fitted: Fitted, text: str | None) -> str:
    """The prompt's text as the model sees it: the caller's own unless it was cut or given as ids."""
    return text if text is not None and not fitted.num_dropped else tokenizer.decode(fitted.prompt_ids)


def build_requests(
    prompts: Sequence[Prompt], decoding: Decoding, call: GenerateCall
) -> list[SequenceRequest]:
    """Make the sequences, in the order of their choices."""
    score_from = 0 if call.echo and call.logprobs is not None else None
    is_streamed = call.origin.is_streamed
    requests: list[SequenceRequest] = []
    for prompt in prompts:
        params = replace(
            decoding.params,
            max_new_tokens=prompt.fitted.max_new_tokens,
            logprobs=call.logprobs,
            score_from=score_from,
        )
        for _ in range(call.n):
            ids, ordinal = prompt.fitted.prompt_ids, len(requests)
            requests.append(SequenceRequest(ids, params, ordinal, is_streamed))
    return requests


@dataclass(slots=True)
class ChoiceText:
    """A choice as it grows."""

    index: int
    prompt: Prompt
    tokenizer: Tokenizer
    text: str = ""
    finish_reason: str = ""
    scores: Scores | None = None  # from the first output on, where they are wanted
    _scorer: Scorer | None = None  # of those that are streamed

    def push(self, output: SequenceOutput, call: GenerateCall) -> Token:
        """Take the engine's news and give the event for them, with the scores of its tokens if it is
        streamed.
        """
        is_first = self._scorer is None
        if self._scorer is None:
            start: tuple[int, int | None] = (0, None)  # the offset and what stands before it
            if not output.prompt_logprobs:
                start = len(self.prompt.echo), last_of_text(self.tokenizer, self.prompt.fitted.prompt_ids)
            self._scorer = Scorer(self.tokenizer, *start)
            self.scores = Scores(self.tokenizer, *start) if call.logprobs is not None else None
        news: tuple[TokenScore, ...] = ()
        if self.scores is not None:
            entries = (*output.prompt_logprobs, *output.logprobs)
            self.scores.add(entries)
            news = tuple(map(self._scorer.score, entries)) if call.origin.is_streamed else ()
        delta = self.prompt.echo + output.text if is_first else output.text
        self.text += delta
        self.finish_reason = output.finish_reason or ""
        return Token(self.index, delta, news, self.finish_reason or None)


async def generate_events(
    job: JobStream, tokenizer: Tokenizer, prompts: Sequence[Prompt], call: GenerateCall, seed: int
) -> AsyncGenerator[Event]:
    """Yield the choices' tokens as they come, then the result."""
    choices = [
        ChoiceText(index, prompt, tokenizer)
        for index, prompt in enumerate(prompt for prompt in prompts for _ in range(call.n))
    ]
    async for output in job:
        yield choices[output.index].push(output, call)
        if (
            output.prompt_logprobs
        ):  # hundreds of tokens: others have their turn before those of the next prompt
            await asyncio.sleep(0)
    num_dropped = sum(prompt.fitted.num_dropped for prompt in prompts)
    finished = tuple(Choice(c.index, c.text, c.finish_reason, c.scores) for c in choices)
    yield Done(GenerateResult(seed, finished, usage(job, num_dropped), timings(job)))
