"""The native dialect: `/generate`, `/summarize`, `/qa`, `/tasks/{name}`, and the list of tasks.

Each route turns its body into a task call and its events into an answer. Read `replies` and `sse` next.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.description import NATIVE_STREAM
from service.api.exchange import Exchange, exchange_of
from service.api.json_reply import json_response
from service.api.replies import NativeFrames, new_id, reply
from service.api.reply_models import (
    LOOK,
    WORK,
    ChoiceReply,
    GenerateReply,
    QaReply,
    SummarizeReply,
    TaskList,
)
from service.api.schemas import GenerateBody, QaBody, SummarizeBody, TaskBody
from service.api.sse import EventStream
from service.api.state import service_of
from service.api.strict_route import StrictRoute
from service.tasks.run import Running

router = APIRouter(route_class=StrictRoute)


def _documented(model: Any) -> dict[int | str, Any]:
    """A route's answers: JSON, or a stream of events when `stream` is true, or a refusal."""
    stream = {"text/event-stream": {"schema": NATIVE_STREAM}}
    return {
        **WORK,
        200: {"model": model, "content": stream, "description": "The reply, or a stream of events"},
    }


@router.post("/generate", responses=_documented(GenerateReply))
async def generate(body: GenerateBody, request: Request) -> Response:
    """Continue a prompt, or several, one or more times."""
    exchange = exchange_of(request)
    call = body.to_call(exchange.origin(body.stream, body.timeout_s))
    return await _answer(exchange, exchange.served.runner.generate(call), "gen", body.stream)


@router.post("/summarize", responses=_documented(SummarizeReply))
async def summarize(body: SummarizeBody, request: Request) -> Response:
    """Summarise a text of any length."""
    exchange = exchange_of(request)
    call = body.to_call(exchange.origin(body.stream, body.timeout_s))
    return await _answer(exchange, exchange.served.runner.summarize(call), "sum", body.stream)


@router.post("/qa", responses=_documented(QaReply))
async def qa(body: QaBody, request: Request) -> Response:
    """Answer a question from a context of any length."""
    exchange = exchange_of(request)
    call = body.to_call(exchange.origin(body.stream, body.timeout_s))
    return await _answer(exchange, exchange.served.runner.answer(call), "qa", body.stream)


@router.get("/tasks", responses={**LOOK, 200: {"model": TaskList}, 503: WORK[503]})
async def tasks(request: Request) -> dict[str, Any]:
    """List the tasks of the served model with their fields."""
    found = service_of(request).require_served().tasks
    return {
        "tasks": [
            {
                "name": task.name,
                "kind": task.kind,
                "fields": list(task.fields),
                "labels": list(task.labels),
                "description": task.description,
            }
            for task in found.values()
        ]
    }


@router.post("/tasks/{name}", responses=_documented(GenerateReply | SummarizeReply | QaReply | ChoiceReply))
async def run_task(name: str, body: TaskBody, request: Request) -> Response:
    """Run any task of the served model; `GET /tasks` lists them with their fields."""
    exchange = exchange_of(request)
    call = body.to_call(name, exchange.origin(body.stream, body.timeout_s))
    return await _answer(exchange, exchange.served.runner.run_task(call), "task", body.stream)


async def _answer(exchange: Exchange, task: Running, prefix: str, is_streamed: bool) -> Response:
    """The only path for streaming and non-streaming replies alike."""
    model, reply_id = exchange.served.name, new_id(prefix)
    if is_streamed:
        return EventStream(await exchange.admit(task), NativeFrames(reply_id, model), exchange)
    return await json_response(reply(await exchange.result_of(task), reply_id, model))
