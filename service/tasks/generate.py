"""Continues prompts: the plainest task, and what the OpenAI dialect runs through.

Choices come as the engine gives them, untrimmed. Read `chunking` and `summarize` next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.job_stream import JobStream
from service.engine.sequence import SequenceOutput, SequenceRequest, TokenLogprob
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
    echo: str
    text: str = ""
    finish_reason: str = ""
    entries: list[TokenLogprob] = field(default_factory=list)  # smaller than the scores made of them
    _is_started: bool = False
    _previous_id: int | None = None
    _offset: int = 0
    _first_offset: int = 0

    def push(self, tokenizer: Tokenizer, output: SequenceOutput, call: GenerateCall) -> Token:
        """Take the engine's news and give the event for them; scores that nobody reads before the end are not
        made yet.
        """
        delta = output.text if self._is_started else self.echo + output.text
        entries = (*output.prompt_logprobs, *output.logprobs) if call.logprobs is not None else ()
        if not self._is_started and not output.prompt_logprobs:
            self._offset = self._first_offset = len(self.echo)
        self._is_started = True
        is_read = call.origin.is_streamed
        news = tuple(self._score(tokenizer, entry) for entry in entries) if is_read else ()
        self.text += delta
        self.entries += entries
        self.finish_reason = output.finish_reason or ""
        return Token(self.index, delta, news, self.finish_reason or None)

    def scores(self, tokenizer: Tokenizer) -> tuple[TokenScore, ...]:
        """All scores again, from the first on."""
        self._previous_id, self._offset = None, self._first_offset
        return tuple(self._score(tokenizer, entry) for entry in self.entries)

    def _score(self, tokenizer: Tokenizer, entry: TokenLogprob) -> TokenScore:
        def as_text(token_id: int) -> str:
            return tokenizer.piece(self._previous_id, token_id).decode("utf-8", "replace")

        piece = tokenizer.piece(self._previous_id, entry.token_id)
        continues = bool(piece) and piece[0] & 0xC0 == 0x80  # goes on with a character that began before
        offset = max(self._offset - continues, 0)
        top = tuple((as_text(token_id), logprob) for token_id, logprob in entry.top)
        score = TokenScore(entry.token_id, as_text(entry.token_id), offset, entry.logprob, top)
        self._offset += sum(byte & 0xC0 != 0x80 for byte in piece)
        self._previous_id = entry.token_id
        return score


async def generate_events(
    job: JobStream, tokenizer: Tokenizer, prompts: Sequence[Prompt], call: GenerateCall, seed: int
) -> AsyncGenerator[Event]:
    """Yield the choices' tokens as they come, then the result."""
    choices = [
        ChoiceText(index, prompt.echo)
        for index, prompt in enumerate(prompt for prompt in prompts for _ in range(call.n))
    ]
    async for output in job:
        yield choices[output.index].push(tokenizer, output, call)
    finished: list[Choice] = []
    for c in choices:
        scores = c.scores(tokenizer) if call.logprobs is not None else None
        finished.append(Choice(c.index, c.text, c.finish_reason, scores))
        await asyncio.sleep(0)  # the scores of many choices are work: others have their turn between them
    num_dropped = sum(prompt.fitted.num_dropped for prompt in prompts)
    yield Done(GenerateResult(seed, tuple(finished), usage(job, num_dropped), timings(job)))
