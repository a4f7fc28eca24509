"""The OpenAI dialect: `/v1/completions` and `/v1/models`, for clients that speak it already.

The same tasks run behind it as behind `/generate`; only names, shapes and statuses differ. Conversations are
in `chat`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.description import OPENAI_STREAM
from service.api.exchange import exchange_of
from service.api.json_pieces import CompactResponse
from service.api.json_reply import json_response
from service.api.openai_frames import OpenAIFrames
from service.api.openai_replies import check_model, head, tell_ignored, usage_of
from service.api.openai_schemas import CompletionBody
from service.api.reply_models import OPENAI_LOOK, OPENAI_WORK
from service.api.sse import EventStream
from service.api.state import Served, service_of
from service.api.strict_route import StrictRoute
from service.tasks.calls import GenerateResult, TokenScore
from service.tasks.events import Token

router = APIRouter(prefix="/v1", route_class=StrictRoute, default_response_class=CompactResponse)

_JSON_OR_STREAM = {
    "application/json": {"schema": {"type": "object"}},
    "text/event-stream": {"schema": OPENAI_STREAM},
}
COMPLETION: dict[int | str, Any] = {
    200: {"description": "A completion, or a stream of chunks", "content": _JSON_OR_STREAM}
}
_OBJECT: dict[int | str, Any] = {
    200: {"description": "As OpenAI's", "content": {"application/json": {"schema": {"type": "object"}}}}
}


@router.post("/completions", responses={**OPENAI_WORK, **COMPLETION}, response_model=None)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue a prompt, or several, in OpenAI's shapes."""
    exchange = exchange_of(request)
    served, is_streamed = exchange.served, body.stream
    check_model(body.model, served, exchange.service)
    task = served.runner.generate(body.to_call(exchange.origin(is_streamed)))
    beginning = head("cmpl", "text_completion", served.name)
    if is_streamed:
        frames = CompletionFrames(beginning, body)
        return tell_ignored(EventStream(await exchange.admit(task), frames, exchange), body, exchange)
    result = await exchange.result_of(task)
    assert isinstance(result, GenerateResult), "its task is of kind generate"
    choices = (
        _choice(choice.index, choice.text, _scores(list(choice.logprobs or ()), body), choice.finish_reason)
        for choice in result.choices
    )
    reply = {**beginning, "choices": choices, "usage": usage_of(result)}
    return tell_ignored(await json_response(reply), body, exchange)


@router.get("/models", responses={**OPENAI_LOOK, **_OBJECT}, response_model=None)
async def models(request: Request) -> dict[str, Any]:
    """List the served model."""
    return {"object": "list", "data": [_model(service_of(request).require_served())]}


@router.get("/models/{name:path}", responses={**OPENAI_LOOK, **_OBJECT}, response_model=None)
async def model(name: str, request: Request) -> dict[str, Any]:
    """Describe the served model."""
    served = service_of(request).require_served()
    check_model(name, served, service_of(request))
    return _model(served)


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "textgen"}


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


class CompletionFrames(OpenAIFrames[CompletionBody]):
    """A completion's chunks."""

    def choices(self, event: Token) -> Iterator[dict[str, Any]]:
        """One, of a token that shows something."""
        if event.text or event.logprobs or event.finish_reason:
            yield _choice(event.index, event.text, _scores(event.logprobs, self._body), event.finish_reason)
