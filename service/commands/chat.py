"""`textgen chat`: a conversation line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from service.conversation import Message


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
        from service.client import events, get
        from service.conversation import chat_request

        tasks = get(http, "/tasks")["tasks"]
        turns: list[Message] = []
        for line in _lines():
            turns.append({"role": "user", "content": line})
            path, body = chat_request(tasks, turns)
            reply = ""
            for kind, data in events(http, path, {"overflow": "truncate_left", **body, **fields}):
                if kind == "token":
                    piece = data["text"] if reply else data["text"].lstrip()
                    typer.echo(piece, nl=False)
                    reply += piece
                elif kind == "done" and data["usage"]["dropped_tokens"]:
                    say(f"the first {data['usage']['dropped_tokens']} tokens no longer fit and were left out")
            typer.echo()
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
