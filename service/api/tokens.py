"""vLLM's way to ask for tokens: `/tokenize`, `/detokenize`, `/tokenizer_info`. No token is generated.

What counts a prompt's tokens here counts them for `/generate` and `/v1`: it is the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, ConfigDict, WithJsonSchema
from starlette.responses import Response

from service.api.chat_schemas import MESSAGES_SCHEMA, Messages, read_messages
from service.api.exchange import exchange_of
from service.api.fields import IDS_SCHEMA, body_field, read_ids
from service.api.json_pieces import CompactResponse
from service.api.json_reply import json_of, json_response
from service.api.openai_fields import OpenAIBody
from service.api.openai_replies import check_model, tell_ignored
from service.api.reply_models import LOOK, WORK
from service.api.state import service_of
from service.api.strict_route import StrictRoute
from service.errors import InvalidRequest
from service.tasks.calls import ChatCall

router = APIRouter(route_class=StrictRoute, default_response_class=CompactResponse)

_OBJECT: dict[int | str, Any] = {
    200: {"description": "As vLLM's", "content": {"application/json": {"schema": {"type": "object"}}}}
}


class TokenizeBody(OpenAIBody):
    """A prompt or a conversation, of which the tokens are wanted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Once upon a time"}]})

    model: str = body_field("", "the served model's name, or left out")
    prompt: str = body_field(None, "a string; this or messages")
    messages: Annotated[Messages, BeforeValidator(read_messages), WithJsonSchema(MESSAGES_SCHEMA)] = (
        body_field(None, "a list of messages, as of /v1/chat/completions")
    )
    add_special_tokens: bool = body_field(
        True, "true or false: those that the tokenizer puts around a prompt"
    )
    return_token_strs: bool = body_field(False, "true or false")

    def ignored(self) -> Iterator[str]:
        """See `OpenAIBody`."""
        yield from super().ignored()
        yield from self.messages.ignored if self.messages is not None else ()


class DetokenizeBody(OpenAIBody):
    """Tokens, of which the text is wanted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [72, 101]}]})

    model: str = body_field("", "the served model's name, or left out")
    tokens: Annotated[tuple[int, ...], BeforeValidator(read_ids), WithJsonSchema(IDS_SCHEMA)] = body_field(
        ..., "a list of token ids"
    )


@router.post("/tokenize", responses={**WORK, **_OBJECT}, response_model=None)
async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """The tokens of a prompt, special ones in it parsed, or of a conversation."""
    exchange = exchange_of(request)
    runner, origin = exchange.served.runner, exchange.origin(is_streamed=False)
    check_model(body.model, exchange.served, exchange.service)
    body.check_understood()
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("prompt or messages must be given, and not both", "prompt")
    if body.prompt is not None:
        ids = await exchange.run(runner.tokenize(body.prompt, body.add_special_tokens, origin))
    else:
        ids = await exchange.run(runner.tokenize_chat(ChatCall(body.messages.turns, origin=origin)))

    def reply() -> dict[str, Any]:
        texts = [runner.tokenizer.name_of(token_id) for token_id in ids] if body.return_token_strs else None
        length = runner.limits.n_positions
        return {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": texts}

    return tell_ignored(await json_of(exchange, reply, len(ids)), body, exchange)


@router.post("/detokenize", responses={**WORK, **_OBJECT}, response_model=None)
async def detokenize(body: DetokenizeBody, request: Request) -> Response:
    """The text of tokens, special ones shown."""
    exchange = exchange_of(request)
    tokenizer = exchange.served.runner.tokenizer
    check_model(body.model, exchange.served, exchange.service)
    body.check_understood()
    if max(body.tokens, default=0) >= tokenizer.vocab_size:
        raise InvalidRequest(f"tokens must hold token ids from 0 to {tokenizer.vocab_size - 1}", "tokens")

    def reply() -> dict[str, Any]:
        return {"prompt": tokenizer.decode(body.tokens, shows_specials=True)}

    return tell_ignored(await json_of(exchange, reply, len(body.tokens)), body, exchange)


@router.get("/tokenizer_info", responses={**LOOK, **_OBJECT}, response_model=None)
async def tokenizer_info(request: Request) -> Response:
    """What the tokenizer is: the names of its special tokens, its size, the model's window."""
    served = service_of(request).require_served()
    tokenizer, source = served.runner.tokenizer, getattr(served.runner.chat_format, "source", None)
    info = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokenizer.named_specials,
        "eos_token_id": tokenizer.eos_id,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": served.runner.limits.n_positions,
        "chat_template": source,
    }
    return await json_response(info)
