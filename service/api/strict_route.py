"""Routes whose bodies are strict JSON: what `bodies.parse_json` refuses is never validated."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request

from service.api.bodies import LARGE_BODY_BYTES, parse_json
from service.api.exchange import exchange_of


class StrictRequest(Request):
    """A request whose `json` is strict; large bodies are parsed off the event loop."""

    async def json(self) -> Any:
        """Parse the body; see `bodies.parse_json`."""
        body = await self.body()
        if len(body) <= LARGE_BODY_BYTES:
            return parse_json(body)
        return await exchange_of(self).run(asyncio.to_thread(parse_json, body))


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest`."""

    def get_route_handler(self) -> Any:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Any:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict
