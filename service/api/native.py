"""The native dialect: `/generate`, `/summarize`, `/qa`, `/tasks/{name}`, and the list of tasks.

Each route turns its body into a task call and its events into an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import hugging_face
from service.api.description import NATIVE_STREAM
from service.api.exchange import exchange_of
from service.api.json_pieces import CompactResponse
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
from service.api.schemas import GenerateBody, QaBody, SamplingBody, SummarizeBody, TaskBody
from service.api.sse import EventStream
from service.api.state import service_of
from service.api.strict_route import StrictRoute, speaks_also
from service.tasks.calls import Origin
from service.tasks.run import Running, TaskRunner

router = APIRouter(route_class=StrictRoute, default_response_class=CompactResponse)

C = TypeVar("C")


def _documented(model: Any) -> dict[int | str, Any]:
    """A route's answers: JSON, or a stream of events when `stream` is true, or a refusal."""
    stream = {"text/event-stream": {"schema": NATIVE_STREAM}}
    return {
        **WORK,
        200: {"model": model, "content": stream, "description": "The reply, or a stream of events"},
    }


@router.post("/generate", responses=_documented(GenerateReply))
@speaks_also(hugging_face.generate)
async def generate(body: GenerateBody, request: Request) -> Response:
    """Continue a prompt, or several, one or more times."""
    return await _answer(request, "gen", body, body.to_call, TaskRunner.generate)


@router.post("/summarize", responses=_documented(SummarizeReply))
@speaks_also(hugging_face.summarize)
async def summarize(body: SummarizeBody, request: Request) -> Response:
    """Summarise a text of any length."""
    return await _answer(request, "sum", body, body.to_call, TaskRunner.summarize)


@router.post("/qa", responses=_documented(QaReply))
@speaks_also(hugging_face.answer)
async def qa(body: QaBody, request: Request) -> Response:
    """Answer a question from a context of any length."""
    return await _answer(request, "qa", body, body.to_call, TaskRunner.answer)


@router.get("/tasks", responses={**LOOK, 200: {"model": TaskList}, 503: WORK[503]})
async def tasks(request: Request) -> dict[str, Any]:
    """List the tasks of the served model with their fields, and say whether it holds conversations."""
    served = service_of(request).require_served()
    chat_format = served.runner.chat_format
    return {
        "chat": chat_format.way if chat_format is not None else None,
        "tasks": [
            {
                "name": task.name,
                "kind": task.kind,
                "fields": list(task.fields),
                "labels": list(task.labels),
                "description": task.description,
            }
            for task in served.tasks.values()
        ],
    }


@router.post("/tasks/{name}", responses=_documented(GenerateReply | SummarizeReply | QaReply | ChoiceReply))
async def run_task(name: str, body: TaskBody, request: Request) -> Response:
    """Run any task of the served model; `GET /tasks` lists them with their fields."""
    return await _answer(request, "task", body, partial(body.to_call, name), TaskRunner.run_task)


async def _answer(
    request: Request,
    prefix: str,
    body: SamplingBody,
    to_call: Callable[[Origin], C],
    run: Callable[[TaskRunner, C], Running],
) -> Response:
    """The only path for streaming and non-streaming replies alike."""
    exchange = exchange_of(request)
    call = to_call(exchange.origin(body.stream, body.timeout_s))
    task, model = run(exchange.served.runner, call), exchange.served.name
    if body.stream:
        return EventStream(await exchange.admit(task), NativeFrames(new_id(prefix), model), exchange)
    return await json_response(reply(await exchange.result_of(task), new_id(prefix), model))
