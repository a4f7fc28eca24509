"""The native dialect: `/generate`, `/summarize`, `/qa`, `/tasks/{name}`, and the list of tasks.

Each route turns its body into a task call and hands it to `answer`, which is the only path for streaming and
non-streaming replies alike. Read `replies` and `sse` next.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.bodies import StrictRoute
from service.api.description import NATIVE_STREAM
from service.api.exchange import Exchange, exchange_of
from service.api.json_pieces import encoded
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
from service.api.sse import EventStream, Frames
from service.api.state import service_of
from service.tasks.calls import Origin, Result
from service.tasks.events import Done
from service.tasks.job import Prepared
from service.tasks.run import TaskRunner

router = APIRouter(route_class=StrictRoute)

Prepare = Callable[[TaskRunner, Origin], Coroutine[Any, Any, Prepared]]


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
    return await _native(
        request, "gen", body, lambda runner, origin: runner.prepare_generate(body.to_call(origin))
    )


@router.post("/summarize", responses=_documented(SummarizeReply))
async def summarize(body: SummarizeBody, request: Request) -> Response:
    """Summarise a text of any length."""
    return await _native(
        request, "sum", body, lambda runner, origin: runner.prepare_summarize(body.to_call(origin))
    )


@router.post("/qa", responses=_documented(QaReply))
async def qa(body: QaBody, request: Request) -> Response:
    """Answer a question from a context of any length."""
    return await _native(request, "qa", body, lambda runner, origin: runner.prepare_qa(body.to_call(origin)))


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
    return await _native(
        request, "task", body, lambda runner, origin: runner.prepare_task(body.to_call(name, origin))
    )


async def _native(request: Request, prefix: str, body: SamplingBody, prepare: Prepare) -> Response:
    service, exchange = service_of(request), exchange_of(request)
    served = service.require_served()
    reply_id = new_id(prefix)
    timeout_s = body.timeout_s if "timeout_s" in body.model_fields_set else None
    origin = exchange.origin(service.settings.request_timeout_s, body.stream, timeout_s)
    work = prepare(served.runner, origin)
    if body.stream:
        return await stream(request, work, NativeFrames(reply_id, served.name, exchange))
    result = await exchange.run(collect(work), request.receive)
    exchange.account(result)
    return await json_response(reply(result, reply_id, served.name))


async def stream(request: Request, work: Coroutine[Any, Any, Prepared], frames: Frames) -> Response:
    """Admit a task and answer with its events; what can be refused is refused before the 200."""
    exchange: Exchange = exchange_of(request)
    prepared = await exchange.run(work, request.receive)
    return EventStream(prepared, frames, exchange, service_of(request).settings.send_timeout_s)


async def collect(work: Coroutine[Any, Any, Prepared]) -> Result:
    """Admit a task and run it to its end."""
    async with await work as prepared:
        async for event in prepared.events():
            if isinstance(event, Done):
                return event.result
    raise AssertionError("a task's events end with Done")


async def json_response(value: Mapping[str, Any]) -> Response:
    """Compact JSON in UTF-8, texts as they are, made in turns with whatever else is to be done."""
    return Response(await encoded(value), media_type="application/json")
