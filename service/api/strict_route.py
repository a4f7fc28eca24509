"""Routes whose bodies are strict JSON: what `bodies.parse_json` refuses is never validated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from service.api.bodies import LARGE_BODY_BYTES, parse_json
from service.api.exchange import exchange_of
from service.api.fields import Body
from service.api.openai_fields import OpenAIBody, legal_of
from service.api.problems import HttpProblem, validation_problem
from service.api.schemas import LEGAL

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=Body)
Twin = Callable[[dict[str, Any], Request], Awaitable[Response]]
"""Answers a body of another dialect at the same path."""
_TWIN_KEY = "inputs"  # what such a body has and ours have not


class StrictRequest(Request):
    """A request whose `json` is strict and valid; large bodies are read off the event loop.

    Args:
        scope, receive: the request.
        read: its body, if somebody has read it.
    """

    def __init__(self, scope: Scope, receive: Receive, read: bytes | None = None) -> None:
        super().__init__(scope, receive)
        if read is not None:
            self._body = read

    async def json(self) -> Any:
        """The body as the route's model: the framework, which would validate on the loop, passes it on."""
        body, model = await self.body(), self.scope["route"].body_model
        return self._take(await self._run(len(body), read_body, body, model))

    async def validated(self, value: dict[str, Any], model: type[M]) -> M:
        """A value of this request as a body. Raises HttpProblem, see `read_body`."""
        body: M = self._take(await self._run(len(await self.body()), validated, value, model))
        return body

    def _take(self, read: tuple[Any, Mapping[str, str]]) -> Any:
        """Note what the caller calls fields."""
        body, exchange_of(self).spelling = read
        return body

    async def value(self) -> Any:
        """The body as strict JSON, of whatever shape."""
        body = await self.body()
        return await self._run(len(body), parse_json, body)

    async def _run(self, size: int, work: Callable[..., Any], *args: Any) -> Any:
        if size <= LARGE_BODY_BYTES:
            return work(*args)
        return await exchange_of(self).run(asyncio.to_thread(work, *args))


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest`."""

    body_model: type[Body]

    def get_route_handler(self) -> Any:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()
        twin: Twin | None = getattr(self.endpoint, "twin", None)
        for field in self.dependant.body_params:
            self.body_model = field.field_info.annotation  # type: ignore[assignment]  # bodies are models

        async def strict(request: Request) -> Any:
            given = StrictRequest(request.scope, request.receive)
            if twin is not None and f'"{_TWIN_KEY}"'.encode() in await given.body():
                value = await given.value()
                if isinstance(value, dict) and _TWIN_KEY in value:
                    return await twin(value, given)
            return await handle(given)

        return strict


def speaks_also(twin: Twin) -> Callable[[F], F]:
    """Let an endpoint's path answer bodies with `inputs` in another dialect."""

    def marked(endpoint: F) -> F:
        endpoint.twin = twin  # type: ignore[attr-defined]  # `StrictRoute` reads it
        return endpoint

    return marked


def read_body(body: bytes, model: type[M]) -> tuple[M | None, Mapping[str, str]]:
    """Parse and validate a body; see `bodies.parse_json`.

    Args:
        body: what was sent.
        model: what it must be.

    Returns:
        The body, and what the caller calls our fields.

    Raises:
        HttpProblem: it is no JSON, or the first value of it that is not legal.
    """
    value = parse_json(body)
    # None: the framework takes it for no body.
    return (None, {}) if value is None else validated(value, model)


def validated(value: Any, model: type[M]) -> tuple[M, Mapping[str, str]]:
    """A value as a body; see `read_body`."""
    spelling = model.spelling(value) if isinstance(value, dict) else {}
    try:
        return model.model_validate(value), spelling
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        legal = legal_of(model) if issubclass(model, OpenAIBody) else LEGAL
        problem = validation_problem(errors, legal).spelled(spelling)
        raise HttpProblem(problem.code, problem.message, problem.param) from None
