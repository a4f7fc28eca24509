"""What the routes of the OpenAI dialect share: the model's names, usage, and fields that nothing read."""

from __future__ import annotations

import time
from typing import Any

from starlette.responses import Response

from service.api.exchange import Exchange
from service.api.openai_fields import MAX_TOLD, OpenAIBody
from service.api.replies import new_id
from service.api.state import Served, ServiceState
from service.errors import NotFound
from service.logs import get_logger
from service.tasks.calls import GenerateResult

_ANY = ("tgi", "dummy")  # what huggingface_hub calls a model of which it knows nothing but an address
_MOST_LOGGED = 1000  # names of ignored fields: clients choose them


def check_model(name: str, served: Served, service: ServiceState) -> None:
    """Raise `NotFound` for a name that is neither the model's nor an alias of it."""
    names = ("", *_ANY, served.name, f"{served.name}@{served.version}")
    if name.startswith(("http://", "https://")):  # as Hugging Face's client for JavaScript names it
        return
    aliases = service.settings.model_aliases
    if name not in names and aliases.get(name, aliases.get("*")) not in names:
        raise NotFound(f"no such model; this service has {served.name}", "model")


def head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """What every reply and chunk begins with."""
    return {"id": new_id(prefix), "object": kind, "created": int(time.time()), "model": model}


def usage_of(result: GenerateResult) -> dict[str, Any]:
    """Tokens as OpenAI counts them: a prompt once, however many samples it has; messages left out, if any."""
    usage, prompt_tokens = result.usage, result.usage.prompt_tokens // result.num_samples
    dropped = {"dropped_messages": result.dropped_messages} if result.dropped_messages else {}
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": min(usage.cached_tokens, prompt_tokens)},
        **dropped,
    }


def tell_ignored(response: Response, body: OpenAIBody, exchange: Exchange) -> Response:
    """Name the fields that nothing read: in a header, and in the log when one is new."""
    names = list(dict.fromkeys(body.ignored()))
    if names:
        response.headers["X-Ignored-Fields"] = ", ".join(names[:MAX_TOLD])
    known = exchange.service.ignored_fields
    for name in names:
        if name not in known and len(known) < _MOST_LOGGED:
            known.add(name)
            get_logger().info("ignored a field", endpoint=exchange.endpoint, field=name)
    return response
