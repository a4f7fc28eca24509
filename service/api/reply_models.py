"""The shapes of replies, for the OpenAPI page: what the tasks' results do not say themselves.

Nothing is validated with them while serving; a test holds real replies against them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from service.api.problems import STATUSES
from service.tasks.calls import ChunkSummary, QaAnswer, ScoredSummary, Timings, Usage


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reply(_Shape):
    """What every reply has."""

    id: str
    model: str
    seed: int
    usage: Usage
    timings: Timings


class Alternative(_Shape):
    """A token that might have been."""

    token: str
    logprob: float


class TokenLogprob(_Shape):
    """A token with its log probability; null for a prompt's first token."""

    token: str
    logprob: float | None
    top: list[Alternative]


class Choice(_Shape):
    """One continuation; index = prompt * n + sample."""

    index: int
    text: str
    finish_reason: str
    score: float | None = None
    logprobs: list[TokenLogprob] | None = None


class GenerateReply(Reply):
    """Continuations."""

    choices: list[Choice]


class SummarizeReply(Reply):
    """A summary and those of the chunks it was made from."""

    summary: str
    finish_reason: str
    chunks: list[ChunkSummary]
    summaries: list[ScoredSummary] | None = None


class QaReply(Reply):
    """The best answer, and the others if more were asked for."""

    answer: str
    score: float
    start: int | None
    end: int | None
    answers: list[QaAnswer] | None = None


class ChoiceReply(Reply):
    """The likeliest label and the share of each."""

    label: str
    scores: dict[str, float]


class TaskInfo(_Shape):
    """A task of the served model."""

    name: str
    kind: str
    fields: list[str]
    labels: list[str]
    description: str


class TaskList(_Shape):
    """All tasks of the served model, and how it holds a conversation: template, task, turns or not at all."""

    tasks: list[TaskInfo]
    chat: str | None


class Error(_Shape):
    """What is wrong and what is legal."""

    code: str
    message: str
    param: str | None
    request_id: str


class ErrorReply(_Shape):
    """The one error body of the native dialect."""

    error: Error


class OpenAIError(_Shape):
    """What is wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorReply(_Shape):
    """The one error body of the OpenAI dialect."""

    error: OpenAIError


_WORK = (400, 401, 404, 405, 408, 413, 415, 422, 429, 431, 500, 503, 504)
_LOOK = (401, 405, 431, 500)


def refusals(model: type[BaseModel] = ErrorReply, statuses: tuple[int, ...] = _WORK) -> dict[int | str, Any]:
    """The refusals a route documents, by status."""
    codes: dict[int, list[str]] = {}
    for code, status in STATUSES.items():
        codes.setdefault(status, []).append(code)
    return {status: {"model": model, "description": ", ".join(codes[status])} for status in statuses}


WORK = refusals()
LOOK = refusals(statuses=_LOOK)
OPENAI_WORK = refusals(OpenAIErrorReply, tuple(status for status in _WORK if status != 422))
OPENAI_LOOK = refusals(OpenAIErrorReply, (*_LOOK, 404, 503))
