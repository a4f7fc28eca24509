"""Routes whose bodies are strict JSON: what `bodies.parse_json` refuses is never validated."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.api.bodies import LARGE_BODY_BYTES, parse_json
from service.api.exchange import exchange_of
from service.api.openai_fields import OpenAIBody, legal_of
from service.api.problems import HttpProblem, validation_problem
from service.api.schemas import LEGAL


class StrictRequest(Request):
    """A request whose `json` is strict and valid; large bodies are read off the event loop."""

    async def json(self) -> Any:
        """The body as the route's model: the framework, which would validate on the loop, passes it on."""
        body, model, exchange = await self.body(), self.scope["route"].body_model, exchange_of(self)
        legal = legal_of(model) if issubclass(model, OpenAIBody) else LEGAL
        if len(body) <= LARGE_BODY_BYTES:
            return read_body(body, model, legal)
        return await exchange.run(asyncio.to_thread(read_body, body, model, legal))


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest`."""

    body_model: type[BaseModel]

    def get_route_handler(self) -> Any:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()
        for field in self.dependant.body_params:
            self.body_model = field.field_info.annotation  # type: ignore[assignment]  # bodies are models

        async def strict(request: Request) -> Any:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


def read_body(body: bytes, model: type[BaseModel], legal: Mapping[str, str]) -> Any:
    """Parse and validate a body; see `bodies.parse_json`.

    Args:
        body: what was sent.
        model: what it must be.
        legal: see `validation_problem`.

    Raises:
        HttpProblem: it is no JSON, or the first value of it that is not legal.
    """
    value = parse_json(body)
    if value is None:
        return None  # which the framework takes for no body
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        problem = validation_problem(found, legal)
        raise HttpProblem(problem.code, problem.message, problem.param) from None
