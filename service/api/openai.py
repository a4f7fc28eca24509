"""The OpenAI dialect: `/v1/completions` and `/v1/models`, for clients that speak it already.

The same tasks run behind it as behind `/generate`; only names, shapes and statuses differ.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.description import OPENAI_STREAM
from service.api.exchange import exchange_of
from service.api.json_reply import json_response
from service.api.openai_schemas import CompletionBody
from service.api.problems import Problem
from service.api.replies import new_id
from service.api.reply_models import OPENAI_LOOK, OPENAI_WORK
from service.api.sse import EventStream, frame
from service.api.state import Served, service_of
from service.api.strict_route import StrictRoute
from service.errors import NotFound
from service.tasks.calls import GenerateResult, TokenScore, Usage
from service.tasks.events import Done, Event, Token

router = APIRouter(prefix="/v1", route_class=StrictRoute)

_JSON_OR_STREAM = {
    "application/json": {"schema": {"type": "object"}},
    "text/event-stream": {"schema": OPENAI_STREAM},
}
_REPLY: dict[int | str, Any] = {
    200: {"description": "A completion, or a stream of chunks", "content": _JSON_OR_STREAM}
}
_OBJECT: dict[int | str, Any] = {
    200: {"description": "As OpenAI's", "content": {"application/json": {"schema": {"type": "object"}}}}
}


@router.post("/completions", responses={**OPENAI_WORK, **_REPLY}, response_model=None)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue a prompt, or several, in OpenAI's shapes."""
    exchange = exchange_of(request)
    served, is_streamed = exchange.served, body.stream
    _check_model(body.model, served)
    task = served.runner.generate(body.to_call(exchange.origin(is_streamed)))
    head = _head(served.name)
    if is_streamed:
        has_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(await exchange.admit(task), OpenAIFrames(head, body, has_usage), exchange)
    result = await exchange.result_of(task)
    assert isinstance(result, GenerateResult), "its task is of kind generate"
    choices = (
        _choice(choice.index, choice.text, _scores(list(choice.logprobs or ()), body), choice.finish_reason)
        for choice in result.choices
    )
    return await json_response({**head, "choices": choices, "usage": _usage(result.usage, body.n)})


@router.get("/models", responses={**OPENAI_LOOK, **_OBJECT}, response_model=None)
async def models(request: Request) -> dict[str, Any]:
    """List the served model."""
    return {"object": "list", "data": [_model(service_of(request).require_served())]}


@router.get("/models/{name:path}", responses={**OPENAI_LOOK, **_OBJECT}, response_model=None)
async def model(name: str, request: Request) -> dict[str, Any]:
    """Describe the served model."""
    served = service_of(request).require_served()
    _check_model(name, served)
    return _model(served)


def _check_model(name: str, served: Served) -> None:
    if name not in ("", served.name, f"{served.name}@{served.version}"):
        raise NotFound(f"no such model; this service has {served.name}", "model")


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "textgen"}


def _head(model_name: str) -> dict[str, Any]:
    created = int(time.time())
    return {"id": new_id("cmpl"), "object": "text_completion", "created": created, "model": model_name}


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _scores(scores: Sequence[TokenScore], body: CompletionBody) -> dict[str, Any] | None:
    """OpenAI's four parallel lists; None when log probabilities were not asked for."""
    if body.logprobs is None:
        return None
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [_top(score) for score in scores],
        "text_offset": [score.offset for score in scores],
    }


def _top(score: TokenScore) -> dict[str, float] | None:
    """The alternatives and always the chosen token; None for a prompt's first token. Of tokens whose text is
    the same, as that of most halves of a character, the likeliest stands for all.
    """
    if score.logprob is None:
        return None
    return {**dict(reversed(score.top)), score.text: score.logprob}


def _usage(usage: Usage, n: int) -> dict[str, Any]:
    """Tokens as OpenAI counts them: a prompt once, however many samples it has."""
    prompt_tokens = usage.prompt_tokens // n
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": min(usage.cached_tokens, prompt_tokens)},
    }


class OpenAIFrames:
    """Events of one request as OpenAI's chunks.

    Args:
        head: what all chunks begin with.
        body: the request's body.
        has_usage: whether a chunk with the usage is to come before the end.
    """

    def __init__(self, head: dict[str, Any], body: CompletionBody, has_usage: bool) -> None:
        self._head = {**head, "usage": None} if has_usage else head
        self._body, self._has_usage = body, has_usage

    def of(self, event: Event) -> Iterator[bytes]:
        """See `service.api.sse.Frames`."""
        if isinstance(event, Token) and (event.text or event.logprobs or event.finish_reason):
            scores = _scores(event.logprobs, self._body)
            yield frame(
                {**self._head, "choices": [_choice(event.index, event.text, scores, event.finish_reason)]}
            )
        if isinstance(event, Done):
            if self._has_usage:
                usage = _usage(event.result.usage, self._body.n)
                yield frame({**self._head, "choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"

    def of_problem(self, problem: Problem, request_id: str) -> Iterable[bytes]:
        """See `service.api.sse.Frames`."""
        return [frame(problem.body("openai", request_id))]
