"""A model in Python: `LLM("mine").generate(["Once upon a time"])[0].text`. `docs/python.md` shows all of it.

It is the service without the network: the same checks, the same batching of everything that is asked at once,
the same texts. Sampling fields are the API's and are passed on as they are, so what `/docs` says of a field
holds here. Any thread may ask; what several threads ask at once shares each forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from service.api.reply_models import Choice, ChoiceReply, QaReply, SummarizeReply
from service.client import CHAT, events, get, post
from service.local import LocalService, local_settings
from service.logs import stay_quiet


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds a text.

    Attributes:
        tokens: the text's tokens as strings.
        logprobs: the natural logarithm of each token's probability after those before it; the first has none.
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]

    @property
    def logprob(self) -> float:
        """Of the whole text, given its first token."""
        return math.fsum(each for each in self.logprobs if each is not None)

    @property
    def perplexity(self) -> float:
        """Per token that has a probability; NaN for a single token."""
        count = sum(each is not None for each in self.logprobs)
        return math.exp(-self.logprob / count) if count else math.nan


class LLM:
    """A loaded model.

    Args:
        model: a store name, `name@version`, a folder, or `hf:<hub id>`; "" is `TEXTGEN_MODEL`, else the
            built-in model.
        settings: any setting of the service by its name in small letters, as `device="cpu"` or `threads=2`.

    Raises:
        SettingsError: the model cannot be served, or a setting is wrong; says why.

    Every method raises `RequestError` when a field is not legal (its `param` names the field) and takes any
    sampling field of the API as a keyword.
    """

    def __init__(self, model: str = "", **settings: Any) -> None:
        stay_quiet()
        self._service = LocalService(local_settings(model, **settings))

    def generate(self, prompts: str | Sequence[str], **sampling: Any) -> list[Choice]:
        """Continue one prompt or many, side by side.

        Args:
            prompts: a text, or at least one.
            sampling: `max_new_tokens`, `temperature`, `seed`, `n`, `logprobs` and so on.

        Returns:
            The continuations by index; with `n` samples, index = prompt * n + sample.
        """
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        reply = post(self._service.http, "/generate", {"prompt": given, **sampling})
        return [Choice.model_validate(choice) for choice in reply["choices"]]

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """Continue a prompt and give the text as it comes; leaving the loop early ends the request."""
        for kind, data in events(self._service.http, "/generate", {"prompt": prompt, **sampling}):
            if kind == "token":
                yield data["text"]

    def summarize(self, text: str, **options: Any) -> SummarizeReply:
        """Summarize a text of any length; `chunks` tells which part each piece of the summary is from."""
        return SummarizeReply.model_validate(
            post(self._service.http, "/summarize", {"text": text, **options})
        )

    def ask(self, question: str, context: str, **options: Any) -> QaReply:
        """Answer a question from a text of any length.

        Returns:
            `answer` is `context[start:end]`, or "" when the text holds none; `answers` has the rivals when
            `num_answers` asks for them.
        """
        body = {"question": question, "context": context, **options}
        return QaReply.model_validate(post(self._service.http, "/qa", body))

    def choose(self, task: str, fields: Mapping[str, str]) -> ChoiceReply:
        """Let a task of kind `choice` pick one of its labels; `scores` has the share of each."""
        return ChoiceReply.model_validate(post(self._service.http, f"/tasks/{task}", fields))

    def run(self, task: str, fields: Mapping[str, str], **options: Any) -> dict[str, Any]:
        """Run any task that the model declares; the reply is as `POST /tasks/{name}` gives it."""
        return post(self._service.http, f"/tasks/{task}", {**fields, **options})

    def score(self, text: str) -> Score:
        """Say how likely the model finds each token of a text after those before it."""
        body = {"prompt": text, "echo": True, "max_tokens": 0, "logprobs": 0}
        logprobs = post(self._service.http, "/v1/completions", body)["choices"][0]["logprobs"]
        return Score(tuple(logprobs["tokens"]), tuple(logprobs["token_logprobs"]))

    def chat(self, messages: str | Sequence[Mapping[str, str]], **sampling: Any) -> str:
        """Reply to a message, or to a conversation whose last message is the user's.

        Args:
            messages: a text, or `{"role": "system" | "user" | "assistant", "content": …}`, oldest first.
            sampling: `max_new_tokens`, `temperature`, `seed` and so on; `overflow="drop_oldest"` leaves out
                the oldest turns of a conversation that does not fit.

        Raises:
            InvalidRequest: the model has no way to hold a conversation.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        reply = post(self._service.http, CHAT, {"messages": turns, **sampling}, is_strict=True)
        text: str = reply["choices"][0]["message"]["content"]
        return text

    @property
    def info(self) -> dict[str, Any]:
        """What is loaded: model, device, precision, limits, tasks."""
        return get(self._service.http, "/info")

    def close(self) -> None:
        """Free the model, its cache and its threads; nothing can be asked afterwards."""
        self._service.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()
