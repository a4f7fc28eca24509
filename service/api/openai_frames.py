"""Streams of the OpenAI dialect: what completions and conversations share of their chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

from service.api.chat_schemas import ChatBody
from service.api.openai_fields import StreamOptions, samples_of
from service.api.openai_replies import usage_of
from service.api.openai_schemas import CompletionBody
from service.api.problems import Problem
from service.api.sse import TextFrame, frame
from service.tasks.calls import GenerateResult
from service.tasks.events import Done, Event, Token


class _RunningUsage:
    """The usage so far, for chunks that tell it.

    Args:
        n: samples per prompt.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._completion: dict[int, int] = {}  # by choice
        self._prompt: dict[int, int] = {}  # by prompt

    def of(self, event: Token) -> dict[str, int]:
        """The usage with this event's tokens."""
        self._completion[event.index] = event.num_tokens
        self._prompt[event.index // self._n] = event.num_prompt_tokens
        prompt, completion = sum(self._prompt.values()), sum(self._completion.values())
        counts = {"prompt_tokens": prompt, "completion_tokens": completion}
        return {**counts, "total_tokens": prompt + completion}


B = TypeVar("B", CompletionBody, ChatBody)


class OpenAIFrames(ABC, Generic[B]):
    """Events of one request as OpenAI's chunks, each with one choice, then the usage where it is wanted.

    Args:
        head: what all chunks begin with.
        body: the request's body.
    """

    def __init__(self, head: dict[str, Any], body: B) -> None:
        options = body.stream_options or StreamOptions()
        self._body: B = body
        self._has_usage = options.include_usage
        self._running = _RunningUsage(samples_of(body)) if options.continuous_usage_stats else None
        self._head = {**head, "usage": None} if self._has_usage else head
        self._texts: dict[int, TextFrame] = {}  # by choice, once it has begun

    @abstractmethod
    def choices(self, event: Token) -> Iterator[dict[str, Any]]:
        """What a token becomes: one choice for each chunk."""

    def of(self, event: Event) -> Iterator[bytes]:
        """See `service.api.sse.Frames`."""
        if isinstance(event, Token):
            is_text = event.text and not (event.logprobs or event.finish_reason or self._running)
            if is_text and event.index in self._texts:
                yield self._texts[event.index].of(event.text)
                return
            for choice in self.choices(event):
                running = {"usage": self._running.of(event)} if self._running else {}
                yield frame({**self._head, "choices": [choice], **running})
            if is_text:
                (choice,) = self.choices(replace(event, text=TextFrame.GAP))
                self._texts[event.index] = TextFrame({**self._head, "choices": [choice]})
        if isinstance(event, Done):
            if self._has_usage:
                assert isinstance(event.result, GenerateResult), "texts are generated"
                yield frame({**self._head, "choices": [], "usage": usage_of(event.result)})
            yield b"data: [DONE]\n\n"

    def of_problem(self, problem: Problem, request_id: str) -> Iterable[bytes]:
        """See `service.api.sse.Frames`."""
        return [frame(problem.body("openai", request_id))]
