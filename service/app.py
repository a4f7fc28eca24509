"""The application: `create_app`. Its routes are in `service.api`, its life in `service.life`.

Nothing is global; a process may hold many applications.
"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from service.api import chat, hugging_face, native, openai, ops, page, tokens
from service.api.description import describe
from service.api.exchange import Gate
from service.api.problems import HttpProblem, validation_problem
from service.api.schemas import LEGAL
from service.api.state import ServiceState
from service.engine_setup import Opening
from service.life import Life
from service.settings import Settings

_DIALECTS = (native, openai, chat, tokens, hugging_face, ops)


def create_app(settings: Settings, opening: Opening | None = None) -> FastAPI:
    """Make an application.

    Args:
        settings: validated settings.
        opening: of the settings' model; None opens it when the application's life begins.

    Returns:
        An ASGI application; `app.state.life` is its `Life`, `app.state.service` what its routes share.
    """
    opening = opening or Opening(settings)
    state = ServiceState(settings, opening.metrics)
    life = Life(state, opening)
    app = FastAPI(
        title="textgen-service",
        version=version("textgen-service"),
        summary="Continue, summarise and answer with a fine-tuned GPT-2.",
        # Of each router, not the router: the framework would ask included ones twice, each of their routes by
        # way of the router, a tenth of a millisecond for each request.
        routes=[route for dialect in _DIALECTS for route in dialect.router.routes],
        lifespan=life.span,
        redirect_slashes=False,
        docs_url=None,  # its own need the internet; `page` has them
        redoc_url=None,
        exception_handlers={
            HTTPException: _pass_on,
            RequestValidationError: _explain,
        },
    )
    app.state.service, app.state.life = state, life
    app.add_middleware(Gate, state=state)
    if settings.cors_origins:  # outermost: a preflight has no key and is no request of ours
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID", "X-Session-ID"],
            expose_headers=["X-Request-ID", "X-Ignored-Fields", "Retry-After"],
        )
    page.mount(app)
    describe(app)
    return app


async def _pass_on(request: Request, error: Exception) -> Response:
    """Let the gate answer."""
    raise error


async def _explain(request: Request, error: RequestValidationError) -> Response:
    """Turn the framework's validation errors into ours, and let the gate answer."""
    problem = validation_problem(error.errors(), LEGAL)
    raise HttpProblem(problem.code, problem.message, problem.param)
