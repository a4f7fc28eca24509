"""Operations: is it alive, is it ready, what does it count, what does it serve. Never counted as requests."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.json_pieces import CompactResponse
from service.api.json_reply import json_response
from service.api.page import is_page, page
from service.api.reply_models import LOOK
from service.api.state import ServiceState, service_of
from service.errors import EngineDead, NotReady
from service.metrics import CONTENT_TYPE

router = APIRouter(default_response_class=CompactResponse)

_TEXT: dict[int | str, Any] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}
}
_REFUSALS: dict[int | str, Any] = {status: LOOK[status] for status in (405, 431, 500)}
_NOT_READY: dict[int | str, Any] = {503: {"description": "not_ready, draining", "model": LOOK[500]["model"]}}


@router.get("/livez", responses=_REFUSALS)
async def livez() -> dict[str, str]:
    """Answer as long as the process lives."""
    return {"status": "alive"}


@router.get("/health", responses={**_REFUSALS, **_NOT_READY})  # as vLLM and TGI call it
@router.get("/ping", responses={**_REFUSALS, **_NOT_READY})  # as SageMaker does
@router.get("/readyz", responses={**_REFUSALS, **_NOT_READY})
async def readyz(request: Request) -> dict[str, str]:
    """Answer 200 when new work would be taken now, 503 with the reason otherwise."""
    served = service_of(request).require_served()
    if not served.engine.is_ready:
        raise EngineDead("the engine takes no work")
    return {"status": "ready"}


@router.get("/metrics", responses={**LOOK, **_TEXT}, response_class=Response)
async def metrics(request: Request) -> Response:
    """All counts and times, for Prometheus."""
    return Response(service_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@router.get(
    "/info", responses={**LOOK, 200: {"content": {"application/json": {"schema": {"type": "object"}}}}}
)
async def info(request: Request) -> Response:
    """What is served: model, device, limits."""
    service = service_of(request)
    settings, served = service.settings, service.served
    limits: dict[str, Any] = {
        "max_body_bytes": settings.max_body_bytes,
        "max_job_sequences": settings.max_job_sequences,
        "max_waiting": settings.max_waiting,
        "request_timeout_s": settings.request_timeout_s,
    }
    facts: dict[str, Any] = {"version": version("textgen-service"), "status": _status(service)}
    if served is not None:
        limits["max_job_sequences"] = served.runner.limits.max_job_sequences
        limits["n_positions"] = served.runner.limits.n_positions
        facts["model"] = {"name": served.name, "version": served.version, **served.facts}
        facts["tasks"] = list(served.tasks)
    return await json_response({**facts, "limits": limits})


@router.get("/", responses=LOOK, response_model=dict[str, str])
async def index(request: Request, response: Response) -> Response | dict[str, str]:
    """Where to look; the page for a browser."""
    if is_page("/", request.headers.get("accept", "").encode()):
        return page()
    response.headers["Vary"] = "Accept"
    return {"service": "textgen", "version": version("textgen-service"), "docs": "/docs", "info": "/info"}


def _status(service: ServiceState) -> str:
    """One word: loading, ready, draining or failed."""
    if service.is_draining:
        return "draining"
    try:
        return "ready" if service.require_served().engine.is_ready else "failed"
    except NotReady:
        return "loading"
    except EngineDead:
        return "failed"
