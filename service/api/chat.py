"""The OpenAI dialect's conversations: `/v1/chat/completions`. Read `openai` first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.chat_schemas import ChatBody
from service.api.exchange import exchange_of
from service.api.json_reply import json_response
from service.api.openai import COMPLETION
from service.api.openai_replies import RunningUsage, check_model, head, tell_ignored, usage_of
from service.api.problems import Problem
from service.api.reply_models import OPENAI_WORK
from service.api.sse import EventStream, frame
from service.api.strict_route import StrictRoute
from service.tasks.calls import Choice, GenerateResult, TokenScore
from service.tasks.events import Done, Event, Token

router = APIRouter(prefix="/v1/chat", route_class=StrictRoute)


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
        "usage": usage_of(result.usage, body.n),
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


class ChatFrames:
    """Events of one request as chunks.

    Args:
        head: what all chunks begin with.
        body: the request's body.
    """

    def __init__(self, head: dict[str, Any], body: ChatBody) -> None:
        options = body.stream_options
        self._has_usage = options is not None and options.include_usage
        self._running = (
            RunningUsage(body.n) if options is not None and options.continuous_usage_stats else None
        )
        self._head = {**head, "usage": None} if self._has_usage else head
        self._body, self._begun = body, set[int]()

    def of(self, event: Event) -> Iterator[bytes]:
        """See `service.api.sse.Frames`."""
        if isinstance(event, Token):
            yield from self._of_token(event)
        if isinstance(event, Done):
            if self._has_usage:
                usage = usage_of(event.result.usage, self._body.n)
                yield frame({**self._head, "choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"

    def _of_token(self, event: Token) -> Iterator[bytes]:
        """The first chunk of a choice names the role, the last one says why it ended."""
        running = {"usage": self._running.of(event)} if self._running else {}

        def chunk(delta: dict[str, str], scores: Any = None, finish_reason: str | None = None) -> bytes:
            choice = {
                "index": event.index,
                "delta": delta,
                "logprobs": scores,
                "finish_reason": finish_reason,
            }
            return frame({**self._head, "choices": [choice], **running})

        if event.index not in self._begun:
            self._begun.add(event.index)
            yield chunk({"role": "assistant", "content": ""})
        if event.text or event.logprobs:
            yield chunk({"content": event.text}, _logprobs(event.logprobs, self._body))
        if event.finish_reason is not None:
            yield chunk({}, None, event.finish_reason)

    def of_problem(self, problem: Problem, request_id: str) -> Iterable[bytes]:
        """See `service.api.sse.Frames`."""
        return [frame(problem.body("openai", request_id))]
