"""Continues prompts: the plainest task, and what the OpenAI dialect runs through.

Choices come as the engine gives them, untrimmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
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
    TokenScore,
)
from service.tasks.constraints import Grammar, Guide
from service.tasks.events import Done, Event, Token
from service.tasks.fitting import Fitted, fit_fields, fit_ids, fit_text
from service.tasks.job import timings, usage
from service.tasks.sampling import Decoding
from service.tasks.scores import Scorer, Scores


@dataclass(slots=True)
class ChoiceText:
    """A choice as it grows."""

    index: int
    echo: str
    prompt_ids: tuple[int, ...]
    tokenizer: Tokenizer
    text: str = ""
    finish_reason: str = ""
    num_tokens: int = 0
    scores: Scores | None = None  # from the first output on, where they are wanted
    search_score: float | None = None  # where a beam search found it
    _scorer: Scorer | None = None  # of those that are streamed

    def push(self, output: SequenceOutput, call: GenerateCall) -> Token:
        """Take an output and give its event, with the scores of its tokens if it is streamed."""
        is_first = self._scorer is None
        if self._scorer is None:
            start: tuple[int, int | None] = (0, None)  # the offset and what stands before it
            if not output.prompt_logprobs:
                start = len(self.echo), last_of_text(self.tokenizer, self.prompt_ids)
            self._scorer = Scorer(self.tokenizer, *start)
            self.scores = Scores(self.tokenizer, *start) if call.logprobs is not None else None
        scores: tuple[TokenScore, ...] = ()
        if self.scores is not None:
            entries = (*output.prompt_logprobs, *output.logprobs)
            self.scores.add(entries)
            scores = tuple(map(self._scorer.score, entries)) if call.origin.is_streamed else ()
        delta = self.echo + output.text if is_first else output.text
        self.text += delta
        self.finish_reason = output.finish_reason or ""
        self.search_score = output.score
        self.num_tokens += len(output.token_ids)
        ended = self.finish_reason or None
        return Token(self.index, delta, scores, ended, self.num_tokens, len(self.prompt_ids))


class Generation:
    """A call whose prompts fit: the sequences to submit, in the order of their choices, and their events.

    Args:
        call: the call.
        tokenizer: the model's.
        decoding: resolved sampling fields.
        grammar: the form that texts must have, if any.
    """

    def __init__(
        self, call: GenerateCall, tokenizer: Tokenizer, decoding: Decoding, grammar: Grammar | None = None
    ) -> None:
        self.requests: list[SequenceRequest] = []
        self._call, self._tokenizer, self._decoding = call, tokenizer, decoding
        self._choices: list[ChoiceText] = []
        self._grammar = grammar
        self._guides: dict[int, Guide] = {}  # by choice, with a grammar
        self._num_dropped = 0
        self._n = decoding.params.num_return_sequences  # choices of each prompt
        self._is_search = decoding.params.num_beams > 1

    def add(self, prompt: Fitted, text: str | None) -> None:
        """Add a prompt.

        Args:
            prompt: its ids.
            text: what they were made of; None where the caller gave ids.
        """
        call, echo = self._call, ""
        if call.echo:  # as the model sees it: the caller's own text unless it was cut
            is_whole = text is not None and not prompt.num_dropped and not self._has_marks(prompt)
            echo = text if is_whole and text else self._tokenizer.decode(prompt.prompt_ids)
        params = replace(
            self._decoding.params,
            max_new_tokens=prompt.max_new_tokens,
            logprobs=call.logprobs,
            score_from=0 if call.echo and call.logprobs is not None else None,
        )
        self._num_dropped += prompt.num_dropped
        for _ in range(1 if self._is_search else self._n):
            index = len(self.requests)
            if self._grammar is not None:
                guide = self._guides[index] = self._grammar.guide(prompt.prompt_ids)
                params = replace(params, allowed_next=guide, forced_next=guide.forced)
            self.requests.append(SequenceRequest(prompt.prompt_ids, params, index, call.origin.is_streamed))
        for index in range(len(self._choices), len(self._choices) + self._n):
            self._choices.append(ChoiceText(index, echo, prompt.prompt_ids, self._tokenizer))

    def _has_marks(self, prompt: Fitted) -> bool:
        """Whether special tokens stand in the prompt that the text would show and a reply leaves out."""
        before, after = self._tokenizer.frame_ids if self._call.adds_special else ((), ())
        ids = prompt.prompt_ids[len(before) : len(prompt.prompt_ids) - len(after)]
        skips = self._decoding.params.skip_special_tokens
        return skips and len(ids) > 1 and any(map(self._tokenizer.is_special, ids))

    async def events(self, job: JobStream) -> AsyncGenerator[Event]:
        """Yield the choices' tokens as they come, then the result."""
        async for output in job:
            for rank, told in enumerate((output, *output.others)):
                index = output.index * self._n + rank if self._is_search else output.index
                told = replace(told, prompt_logprobs=output.prompt_logprobs) if rank else told
                event = self._choices[index].push(told, self._call)
                if event.finish_reason and self._guides:
                    self._guides[output.index].check(None if self._is_search else event.num_tokens)
                event.is_followed = rank < len(output.others) or job.has_unread
                yield event
            if output.prompt_logprobs:  # hundreds of tokens: others have their turn before the next prompt's
                await asyncio.sleep(0)
        finished = tuple(  # a search finds fewer texts than are wanted where there are no more
            Choice(c.index, c.text, c.finish_reason, c.scores, c.search_score)
            for c in self._choices
            if c.finish_reason
        )
        spent, num_samples = usage(job, self._num_dropped), 1 if self._is_search else self._n
        seed = self._decoding.params.seed
        yield Done(GenerateResult(seed, finished, spent, timings(job), num_samples=num_samples))


def plan(
    call: GenerateCall,
    tokenizer: Tokenizer,
    decoding: Decoding,
    limits: ModelLimits,
    grammar: Grammar | None = None,
) -> Steps[Generation]:
    """Tokenise a call's prompts.

    Raises:
        PromptTooLong: one does not fit and nothing may be dropped.
        InvalidRequest: one is no valid text, or has a token that the model does not know.
    """
    generation = Generation(call, tokenizer, decoding, grammar)
    for index, prompt in enumerate(call.prompts):
        if index:
            yield
        param = "prompt" if len(call.prompts) == 1 else f"prompt.{index}"
        if isinstance(prompt, str):
            parses = limits.parses_special if call.parses_special is None else call.parses_special
            room = limits.n_positions
            fit = fit_text(
                tokenizer,
                prompt,
                decoding,
                room,
                call.overflow,
                param,
                parses,
                call.adds_special,
                call.keeps_last,
            )
            generation.add((yield from fit), prompt)
            continue
        ids = list(prompt) or [tokenizer.eos_id]
        fitted = fit_ids(ids, decoding, limits.n_positions, call.overflow, param)
        if not all(0 <= token_id < tokenizer.vocab_size for token_id in fitted.prompt_ids):
            legal = f"token ids from 0 to {tokenizer.vocab_size - 1}"
            raise InvalidRequest(f"{param} must hold {legal}", param)
        generation.add(fitted, None)
    return generation


def plan_task(
    call: GenerateCall,
    task: Task,
    fields: Mapping[str, str],
    tokenizer: Tokenizer,
    decoding: Decoding,
    limits: ModelLimits,
    grammar: Grammar | None = None,
) -> Steps[Generation]:
    """Render the prompt of a task. Raises as `plan`."""
    generation = Generation(call, tokenizer, decoding, grammar)
    fit = fit_fields(task, tokenizer, fields, decoding, limits.n_positions, call.overflow)
    generation.add((yield from fit), "".join(part for part, _ in task.segments(fields)))
    return generation
