"""`textgen chat`: a conversation line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer

from service.commands.asking import asking, say
from service.commands.options import (
    KeyFile,
    MaxNewTokens,
    Model,
    Seed,
    Sets,
    Temperature,
    TopK,
    TopP,
    Url,
    fields_of,
)


def chat(
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    set_: Sets = None,
    url: Url = None,
    key_file: KeyFile = None,
    model: Model = None,
) -> None:
    """Talk to a model: a line from you, a line from it. Ctrl-D ends the conversation.

    A conversation that outgrows the model's window loses its beginning, and says so.
    """
    fields = fields_of(
        set_, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    with asking(url, key_file, model) as http:
        from service.client import CHAT, events

        options = {"overflow": "drop_oldest", "stream_options": {"include_usage": True}}
        turns: list[dict[str, str]] = []
        for line in _lines():
            turns.append({"role": "user", "content": line})
            reply, num_dropped = "", 0
            body = {"messages": turns, **options, **fields}
            for _, chunk in events(http, CHAT, body, is_strict=True):
                num_dropped = (chunk.get("usage") or {}).get("dropped_messages", 0)
                for choice in chunk["choices"]:
                    piece = choice["delta"].get("content", "")
                    typer.echo(piece, nl=False)
                    reply += piece
            typer.echo()
            if num_dropped:
                say(f"{num_dropped} messages at the beginning no longer fit and were left out")
            turns.append({"role": "assistant", "content": reply})


def _lines() -> Iterator[str]:
    """What a person types, or a file holds, without blank lines."""
    is_person = sys.stdin.isatty()
    while True:
        if is_person:
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
