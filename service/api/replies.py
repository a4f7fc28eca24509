"""Replies of the native dialect: results become JSON, events become frames; both say the same.

Plain dictionaries: what comes from the task runner is known to be right. `reply_models` describes the same
for the OpenAPI page, and a test compares the two.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from service.api.problems import Problem
from service.api.sse import TextFrame, frame, frame_in_pieces
from service.tasks.calls import (
    Choice,
    ChoiceResult,
    GenerateResult,
    QaResult,
    Result,
    SummarizeResult,
)
from service.tasks.events import Chunk, Done, Event, Plan, Token


def new_id(prefix: str) -> str:
    """An id for a reply, not guessable."""
    return f"{prefix}-{secrets.token_hex(12)}"


def reply(result: Result, reply_id: str, model: str) -> dict[str, Any]:
    """The non-streaming reply of any kind of task; `choices` is an iterator: log probabilities are many."""
    match result:
        case GenerateResult():
            content: dict[str, Any] = {"choices": map(_choice, result.choices)}
        case SummarizeResult():
            chunks = [_fields(chunk) for chunk in result.chunks]
            content = {"summary": result.summary, "finish_reason": result.finish_reason, "chunks": chunks}
            if result.summaries:
                content["summaries"] = [_fields(summary) for summary in result.summaries]
        case QaResult():
            content = _fields(result.answers[0])
            if len(result.answers) > 1:
                content["answers"] = [_fields(answer) for answer in result.answers]
        case ChoiceResult():
            content = {"label": result.label, "scores": dict(result.scores)}
    return {
        "id": reply_id,
        "model": model,
        "seed": result.seed,
        **content,
        "usage": _fields(result.usage),
        "timings": _fields(result.timings),
    }


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a record of plain values; `asdict`, which copies deeply, takes ten times as long."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _choice(choice: Choice) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "index": choice.index,
        "text": choice.text,
        "finish_reason": choice.finish_reason,
    }
    if choice.score is not None:
        shown["score"] = choice.score
    if choice.logprobs is not None:
        shown["logprobs"] = [
            {
                "token": score.text,
                "logprob": score.logprob,
                "top": [{"token": token, "logprob": logprob} for token, logprob in score.top],
            }
            for score in choice.logprobs
        ]
    return shown


class NativeFrames:
    """Events of one request as native frames.

    Args:
        reply_id: the reply's id.
        model: the served model's name.
    """

    def __init__(self, reply_id: str, model: str) -> None:
        self._reply_id, self._model = reply_id, model
        self._texts: dict[int, TextFrame] = {}  # by choice

    def of(self, event: Event) -> Iterator[bytes]:
        """See `service.api.sse.Frames`."""
        match event:
            case Token():
                if event.text and event.index not in self._texts:
                    shown = {"index": event.index, "text": TextFrame.GAP}
                    self._texts[event.index] = TextFrame(shown, "token")
                if event.text:
                    yield self._texts[event.index].of(event.text)
            case Plan():
                yield frame(_fields(event), "plan")
            case Chunk():
                yield frame(_fields(event), "chunk")
            case Done():
                final = without_text(reply(event.result, self._reply_id, self._model))
                yield from frame_in_pieces(final, "done")

    def of_problem(self, problem: Problem, request_id: str) -> Iterable[bytes]:
        """See `service.api.sse.Frames`."""
        return [frame(problem.body("native", request_id), "error")]


def without_text(final: dict[str, Any]) -> dict[str, Any]:
    """A reply without what the token events have already said."""
    left = {name: value for name, value in final.items() if name not in ("summary", "answer")}
    if "choices" in left:
        left["choices"] = (
            {name: value for name, value in choice.items() if name != "text"} for choice in left["choices"]
        )
    return left
