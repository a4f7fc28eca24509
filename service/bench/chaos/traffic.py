"""Mixed requests: every endpoint, streamed or not, right or wrong, some left half-way, some in a hurry."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from service.bench.dialect import error_code
from service.bench.prompts import Shape, generated

Body = dict[str, Any]

_ALLOWED = {200, 400, 404, 405, 408, 413, 415, 422, 429, 503, 504}


@dataclass(frozen=True, slots=True)
class Errand:
    """One request to make.

    Args:
        path: where to.
        body: what is sent.
        leave_after_s: the client goes away so long after sending; None: it stays.
        content_type: of the body.
    """

    path: str
    body: bytes
    leave_after_s: float | None = None
    content_type: str = "application/json"


class Traffic:
    """Draws errands.

    Args:
        seed: the same seed draws the same errands.
        longest_words: of a prompt; keep it below what the model's window holds.
    """

    def __init__(self, seed: int, longest_words: int = 30) -> None:
        self._draw = random.Random(seed)
        self._texts = {
            size: generated([Shape(size, 1)], seed + size)
            for size in (3, 8, longest_words, 4 * longest_words)
        }
        self._sizes = list(self._texts)

    def errand(self) -> Errand:
        """The next request."""
        draw = self._draw
        if draw.random() < 0.12:
            return draw.choice(self._wrong())
        right = (self._generate, self._generate, self._completion, self._summary, self._question, self._task)
        path, body = draw.choice(right)()
        body["stream"] = draw.random() < 0.5
        if draw.random() < 0.08 and not path.startswith("/v1"):
            body["timeout_s"] = round(draw.uniform(0.001, 0.05), 4)
        leave = draw.expovariate(20) if draw.random() < 0.2 else None
        return Errand(path, json.dumps(body).encode(), leave)

    def _words(self, place: int) -> str:
        return next(self._texts[self._sizes[place]]).prompt

    def _sampling(self) -> Body:
        draw = self._draw
        fields = {
            "temperature": draw.choice([0, 0.7, 1.0]),
            "top_k": draw.choice([0, 5, 40]),
            "top_p": draw.choice([1, 0.9]),
            "stop": draw.choice([["\n"], ["zz", "."], "the"]),
            "seed": draw.randrange(2**40),
        }
        return {name: value for name, value in fields.items() if draw.random() < 0.5}

    def _generate(self) -> tuple[str, Body]:
        draw = self._draw
        prompt: Any = self._words(draw.randrange(3))
        if draw.random() < 0.2:
            prompt = [prompt, self._words(0)]
        body = {"prompt": prompt, "max_new_tokens": draw.randint(1, 24), **self._sampling()}
        return "/generate", body | ({"n": 3} if draw.random() < 0.1 else {})

    def _completion(self) -> tuple[str, Body]:
        body = {"prompt": self._words(self._draw.randrange(3)), "max_tokens": self._draw.randint(1, 24)}
        return "/v1/completions", body | ({"logprobs": 2} if self._draw.random() < 0.2 else {})

    def _summary(self) -> tuple[str, Body]:
        text = ". ".join(self._words(self._draw.randrange(1, 4)) for _ in range(3)) + "."
        return "/summarize", {"text": text, "max_new_tokens": 8, "temperature": 0}

    def _question(self) -> tuple[str, Body]:
        context = ". ".join(self._words(self._draw.randrange(1, 3)) for _ in range(2)) + "."
        return "/qa", {"question": "where was the old house", "context": context, "num_answers": 2}

    def _task(self) -> tuple[str, Body]:
        return "/tasks/generate", {"prompt": self._words(1), "max_new_tokens": self._draw.randint(1, 12)}

    def _wrong(self) -> list[Errand]:
        too_long = json.dumps({"prompt": "never again " * 20_000}).encode()
        return [
            Errand("/generate", b'{"prompt": "a", "max_new_tokens": -1}'),
            Errand("/generate", b'{"prompt": "a", "no_such_field": 1}'),
            Errand("/generate", b'{"prompt": '),
            Errand("/generate", b"prompt=a", content_type="application/x-www-form-urlencoded"),
            Errand("/generate", too_long),
            Errand("/tasks/no-such-task", b'{"text": "a"}'),
            Errand("/no/such/path", b"{}"),
            Errand("/v1/completions", b'{"prompt": "a", "model": "no-such-model"}'),
            Errand("/v1/completions", b'{"prompt": "a", "temperature": 9}'),
            Errand("/qa", b'{"question": "who"}'),
        ]


async def run_errand(client: httpx.AsyncClient, url: str, errand: Errand, seen: Counter[str]) -> None:
    """Make one request and count what became of it: a status with its code, `left`, or something bad.

    Args:
        client: shared.
        url: of the server.
        errand: what to do.
        seen: counts by outcome; a key that begins with `bad` must never appear.
    """
    try:
        async with asyncio.timeout(errand.leave_after_s):
            response = await client.post(
                url + errand.path, content=errand.body, headers={"Content-Type": errand.content_type}
            )
    except TimeoutError:
        seen["left"] += 1
        return
    except httpx.HTTPError as error:
        seen[f"bad: {errand.path} {type(error).__name__}"] += 1
        return
    seen[judge(errand, response)] += 1


def judge(errand: Errand, response: httpx.Response) -> str:
    """Name the outcome of a whole response."""
    status = response.status_code
    if status not in _ALLOWED:
        return f"bad: {errand.path} {status} {response.text[:200]}"
    if status != 200:
        return f"{status} {error_code(_object(response.content))}"
    if response.headers["content-type"].startswith("text/event-stream"):
        return judge_stream(errand.path, response.content)
    return "200"


def judge_stream(path: str, body: bytes) -> str:
    """Name the end of a stream: it must be exactly one `done` or `error`, or OpenAI's [DONE]."""
    frames = [frame for frame in body.split(b"\n\n") if frame and not frame.startswith(b":")]
    last = frames[-1] if frames else b""
    if b'"error"' in last or last.startswith(b"event: error"):
        return f"stream {error_code(_object(last[last.find(b'{') :]))}"
    if path.startswith("/v1"):
        if last != b"data: [DONE]":
            return f"bad: {path} stream ended without [DONE]: {last[:100]!r}"
        error = next((frame for frame in frames if b'"error":' in frame), b"")
        return f"stream {error_code(_object(error[error.find(b'{') :]))}" if error else "stream done"
    ends = sum(frame.startswith((b"event: done", b"event: error")) for frame in frames)
    if ends != 1 or not last.startswith(b"event: done"):
        return f"bad: {path} stream has {ends} last frames and ended with {last[:100]!r}"
    return "stream done"


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = {}
    return value if isinstance(value, dict) else {}
