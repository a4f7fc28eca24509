"""`textgen generate`, `summarize` and `ask`: one text in, one answer out, as it comes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.asking import asking, read_text, say
from service.commands.options import (
    AsJson,
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
    import httpx


def generate(
    prompt: Annotated[str, typer.Argument(help="The beginning; left out or `-`: standard input.")] = "-",
    n: Annotated[int | None, typer.Option("--n", "-n", help="So many samples.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; may be given again.")] = None,
    set_: Sets = None,
    as_json: AsJson = False,
    url: Url = None,
    key_file: KeyFile = None,
    model: Model = None,
) -> None:
    """Continue a text: textgen generate "Once upon a time"."""
    fields = fields_of(
        set_, n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        seed=seed, stop=stop or None,
    )  # fmt: skip
    with asking(url, key_file, model) as http:
        text = prompt if prompt != "-" else read_text("-", "a prompt")
        body = {"prompt": text, **fields}
        if as_json or fields.get("n", 1) != 1:
            reply = _reply(http, "/generate", body, as_json)
            for number, choice in enumerate(() if as_json else reply["choices"], 1):
                typer.echo(f"[{number}] {choice['text'].strip()}")
        else:
            _stream(http, "/generate", body)


def summarize(
    file: Annotated[str, typer.Argument(help="A text file; left out or `-`: standard input.")] = "-",
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    set_: Sets = None,
    as_json: AsJson = False,
    url: Url = None,
    key_file: KeyFile = None,
    model: Model = None,
) -> None:
    """Summarize a text file of any length."""
    fields = fields_of(set_, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    with asking(url, key_file, model) as http:
        body = {"text": read_text(file, "a file"), **fields}
        if as_json:
            _reply(http, "/summarize", body, as_json)
        else:
            _stream(http, "/summarize", body)


def ask(
    file: Annotated[str, typer.Argument(help="A text file, or `-`: standard input.")],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    num_answers: Annotated[
        int | None, typer.Option(help="List so many candidates with their scores.")
    ] = None,
    set_: Sets = None,
    as_json: AsJson = False,
    url: Url = None,
    key_file: KeyFile = None,
    model: Model = None,
) -> None:
    """Answer a question from a text file; says plainly when the file holds no answer (exit code 0)."""
    fields = fields_of(set_, num_answers=num_answers)
    with asking(url, key_file, model) as http:
        body = {"context": read_text(file, "a file"), "question": question, **fields}
        reply = _reply(http, "/qa", body, as_json)
        if as_json:
            return
        if not reply["answer"]:
            say(f"the text does not answer this (score {reply['score']:.1f})")
        for each in reply.get("answers", [reply]):
            if each["answer"]:
                typer.echo(
                    f"{each['score']:6.1f}  {each['answer']}" if "answers" in reply else each["answer"]
                )


def _reply(http: httpx.Client, path: str, body: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """The whole reply; printed here if it is wanted as it is."""
    from service.client import post

    reply = post(http, path, body)
    if as_json:
        typer.echo(json.dumps(reply, ensure_ascii=False))
    return reply


def _stream(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """Print the text as it comes, and end its last line."""
    from service.client import events

    last = ""
    for kind, data in events(http, path, body):
        if kind == "token":
            last = data["text"]
            typer.echo(last, nl=False)
    if not last.endswith("\n"):
        typer.echo()
