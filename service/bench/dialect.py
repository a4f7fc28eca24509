"""The two request shapes that are measured: OpenAI's completions and this service's `/generate`.

Says what to send and where the counts stand in the answer; sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.bench.prompts import Ask

NEWS = b'"text":'  # in every frame that carries tokens, in both dialects


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one server wants to be asked.

    Args:
        url: where requests go.
        is_native: `/generate` rather than OpenAI's completions.
        model: OpenAI's field; not sent when empty.
        stream: whether answers come token by token.
        ignore_eos: whether to ask for exactly `max_tokens`.
        extra: more fields of the body; they win.
    """

    url: str
    is_native: bool
    model: str = ""
    stream: bool = True
    ignore_eos: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, ask: Ask) -> bytes:
        """The request body for an ask, greedy unless `extra` says otherwise."""
        fields: dict[str, Any] = {"prompt": ask.prompt, "temperature": 0, "stream": self.stream}
        fields["max_new_tokens" if self.is_native else "max_tokens"] = ask.max_tokens
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if not self.is_native:
            fields |= {"model": self.model} if self.model else {}
            fields |= {"stream_options": {"include_usage": True}} if self.stream else {}
        return json.dumps(fields | dict(self.extra)).encode()


def dialect_of(url: str) -> tuple[str, bool]:
    """Complete a URL: a bare server means its OpenAI endpoint.

    Returns:
        The URL requests go to, and whether it is native.
    """
    base = url.rstrip("/")
    if base.endswith("/generate"):
        return base, True
    if base.endswith("/completions"):
        return base, False
    return base + ("/completions" if base.endswith("/v1") else "/v1/completions"), False


@dataclass(frozen=True, slots=True)
class Account:
    """What an answer says about itself. Counts are None where it says nothing."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str = ""  # the error's code, when it is one


def read_account(body: bytes, is_stream: bool) -> Account:
    """Find usage or error in a whole answer, looking only at its last frames."""
    texts = reversed(body.split(b"\n\n")[-5:]) if is_stream else [body]
    account = Account()
    for text in texts:
        item = _json_of(text)
        if "error" in item:
            return Account(error=error_code(item))
        usage = item.get("usage")
        if account.output_tokens is None and isinstance(usage, dict):
            account = Account(usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return account


def error_code(item: Mapping[str, Any]) -> str:
    """The code of an error body in either dialect; `unknown` when there is none."""
    error = item.get("error")
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    return str(code or "unknown")


def _json_of(text: bytes) -> dict[str, Any]:
    start = text.find(b"{")
    try:
        item = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        item = {}
    return item if isinstance(item, dict) else {}
