"""The OpenAI dialect's conversations: `/v1/chat/completions`. Read `openai` first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.chat_schemas import ChatBody
from service.api.exchange import exchange_of
from service.api.json_pieces import CompactResponse
from service.api.json_reply import json_response
from service.api.openai import COMPLETION
from service.api.openai_frames import OpenAIFrames
from service.api.openai_replies import check_model, head, tell_ignored, usage_of
from service.api.reply_models import OPENAI_WORK
from service.api.sse import EventStream
from service.api.strict_route import StrictRoute
from service.tasks.calls import Choice, GenerateResult, TokenScore
from service.tasks.events import Token

router = APIRouter(prefix="/v1/chat", route_class=StrictRoute, default_response_class=CompactResponse)


@router.post("/completions", responses={**OPENAI_WORK, **COMPLETION}, response_model=None)
async def chat(body: ChatBody, request: Request) -> Response:
    """Say the next turn of a conversation, in OpenAI's shapes."""
    exchange = exchange_of(request)
    served = exchange.served
    check_model(body.model, served, exchange.service)
    task = served.runner.chat(body.to_call(exchange.origin(body.stream)))
    if body.stream:
        frames = ChatFrames(head("chatcmpl", "chat.completion.chunk", served.name), body)
        return tell_ignored(EventStream(await exchange.admit(task), frames, exchange), body, exchange)
    result = await exchange.result_of(task)
    assert isinstance(result, GenerateResult), "a turn is generated"
    reply = {
        **head("chatcmpl", "chat.completion", served.name),
        "choices": (_choice(choice, body) for choice in result.choices),
        "usage": usage_of(result),
    }
    return tell_ignored(await json_response(reply), body, exchange)


def _choice(choice: Choice, body: ChatBody) -> dict[str, Any]:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": _logprobs(choice.logprobs or (), body),
        "finish_reason": choice.finish_reason,
    }


def _logprobs(scores: Iterable[TokenScore], body: ChatBody) -> dict[str, Any] | None:
    """A conversation's form of them; None when they were not asked for."""
    if not body.logprobs:
        return None
    content = []
    for score in scores:
        top = [
            {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
            for text, logprob in score.top
        ]
        token = {"token": score.text, "logprob": score.logprob, "bytes": list(score.piece)}
        content.append({**token, "top_logprobs": top})
    return {"content": content, "refusal": None}


class ChatFrames(OpenAIFrames[ChatBody]):
    """A conversation's chunks."""

    def __init__(self, head: dict[str, Any], body: ChatBody) -> None:
        super().__init__(head, body)
        self._begun: set[int] = set()

    def choices(self, event: Token) -> Iterator[dict[str, Any]]:
        """The first one names the role, the last one says why it ended."""

        def choice(
            delta: dict[str, str], scores: Any = None, finish_reason: str | None = None
        ) -> dict[str, Any]:
            return {
                "index": event.index,
                "delta": delta,
                "logprobs": scores,
                "finish_reason": finish_reason,
            }

        if event.index not in self._begun:
            self._begun.add(event.index)
            yield choice({"role": "assistant", "content": ""})
        if event.text or event.logprobs:
            yield choice({"content": event.text}, _logprobs(event.logprobs, self._body))
        if event.finish_reason is not None:
            yield choice({}, None, event.finish_reason)
