"""Hugging Face's dialect: what TGI, the inference API and SageMaker's containers answer, for their clients.

A body with `inputs` at `/generate`, `/summarize` or `/qa` is in this dialect, and so is every body at `/`,
`/generate_stream` and `/invocations`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from model_store.tokenizer import Tokenizer
from service.api import chat, openai
from service.api.chat_schemas import ChatBody
from service.api.exchange import Exchange, exchange_of
from service.api.hugging_face_schemas import GenerationBody, QuestionBody, SummarizationBody
from service.api.json_pieces import CompactResponse
from service.api.json_reply import json_of
from service.api.openai_replies import tell_ignored
from service.api.openai_schemas import CompletionBody
from service.api.problems import HttpProblem, Problem
from service.api.reply_models import WORK
from service.api.sse import EventStream, frame
from service.api.strict_route import StrictRequest
from service.errors import InvalidRequest
from service.tasks.calls import Choice, GenerateResult, QaResult, SummarizeResult, TokenScore
from service.tasks.events import Done, Event, Token

router = APIRouter(default_response_class=CompactResponse)

_STREAM = {"text/event-stream": {"schema": {"type": "object"}}}
_ANSWER: dict[int | str, Any] = {
    200: {"description": "As TGI's", "content": {"application/json": {"schema": {}}, **_STREAM}}
}


def _takes(*bodies: type) -> dict[str, Any]:
    """The OpenAPI page's part on a body that the route reads by itself."""
    names = [{"title": body.__name__, "type": "object"} for body in bodies]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": names}}}}}


@router.post("/", responses={**WORK, **_ANSWER}, openapi_extra=_takes(GenerationBody, QuestionBody))
async def root(request: Request) -> Response:
    """Continue a prompt, or answer a question, for clients that are given the service's bare address."""
    value = await _read(request)
    if isinstance(value.get("inputs"), dict):
        return await answer(value, request)
    return await _generate(value, request, is_list=True)


@router.post("/generate_stream", responses={**WORK, **_ANSWER}, openapi_extra=_takes(GenerationBody))
async def generate_stream(request: Request) -> Response:
    """Continue a prompt as TGI streams it."""
    return await _generate({**await _read(request), "stream": True}, request, is_list=False)


@router.post("/invocations", responses={**WORK, **_ANSWER}, openapi_extra=_takes(GenerationBody, ChatBody))
async def invocations(request: Request) -> Response:
    """What SageMaker sends: a conversation, a prompt in OpenAI's form, or `inputs`."""
    value = await _read(request)
    if "messages" in value:
        return await chat.chat(await _validated(ChatBody, value, request), request)
    if "prompt" in value:
        return await openai.completions(await _validated(CompletionBody, value, request), request)
    return await root(request)


async def generate(value: dict[str, Any], request: Request) -> Response:
    """Continue a prompt at `/generate`."""
    return await _generate(value, request, is_list=False)


async def _generate(value: dict[str, Any], request: Request, is_list: bool) -> Response:
    exchange, body = _exchange(request), await _validated(GenerationBody, value, request)
    served = exchange.served
    task = served.runner.generate(body.to_call(exchange.origin(body.stream)))
    if body.stream:
        frames = TgiFrames(served.runner.tokenizer, body)
        return tell_ignored(EventStream(await exchange.admit(task), frames, exchange), body, exchange)
    result = await exchange.result_of(task)
    assert isinstance(result, GenerateResult), "its task is of kind generate"

    def reply() -> Any:
        answers = _Reply(body, served.runner.tokenizer, result).all()
        return answers if is_list else answers[0]

    size = (2 + (body.parameters.top_n_tokens or 0)) * result.usage.completion_tokens
    return tell_ignored(await json_of(exchange, reply, size), body, exchange)


async def summarize(value: dict[str, Any], request: Request) -> Response:
    """Summarize a text, or several."""
    exchange, body = _exchange(request), await _validated(SummarizationBody, value, request)
    if len(body.inputs) > (maximum := exchange.served.runner.limits.max_job_sequences):
        raise InvalidRequest(f"inputs must be at most {maximum} texts", "inputs")
    summaries = []
    for call in body.to_calls(exchange.origin(is_streamed=False)):
        result = await exchange.result_of(exchange.served.runner.summarize(call))
        assert isinstance(result, SummarizeResult), "its task is of kind summarize"
        summaries.append({"summary_text": result.summary})
    return tell_ignored(await json_of(exchange, lambda: summaries, len(summaries)), body, exchange)


async def answer(value: dict[str, Any], request: Request) -> Response:
    """Answer a question. A score is the probability that it is the answer rather than that there is none."""
    exchange, body = _exchange(request), await _validated(QuestionBody, value, request)
    result = await exchange.result_of(
        exchange.served.runner.answer(body.to_call(exchange.origin(is_streamed=False)))
    )
    assert isinstance(result, QaResult), "its task is of kind qa"
    answers = [
        {"score": _probability(a.score), "start": a.start or 0, "end": a.end or 0, "answer": a.answer}
        for a in result.answers
    ]
    shown = answers if body.parameters.top_k > 1 else answers[0]
    return tell_ignored(await json_of(exchange, lambda: shown, len(answers)), body, exchange)


def _probability(score: float) -> float:
    return 1 / (1 + math.exp(-max(min(score, 700.0), -700.0)))


# ---- bodies ------------------------------------------------------------------------------------------------


def _exchange(request: Request) -> Exchange:
    exchange = exchange_of(request)
    exchange.dialect = "hugging_face"
    return exchange


async def _read(request: Request) -> dict[str, Any]:
    """The body as an object. Raises HttpProblem if it is none."""
    _exchange(request)
    value = await StrictRequest(request.scope, request.receive, await request.body()).value()
    if not isinstance(value, dict):
        raise HttpProblem("invalid_request", "the body must be an object with inputs")
    return value


async def _validated(model: Any, value: dict[str, Any], request: Request) -> Any:
    if model in (ChatBody, CompletionBody):
        exchange_of(request).dialect = "openai"
    return await StrictRequest(request.scope, request.receive, await request.body()).validated(value, model)


# ---- replies -----------------------------------------------------------------------------------------------


def _token(score: TokenScore, tokenizer: Tokenizer, text: str | None = None) -> dict[str, Any]:
    """A token; with `text`, what a stream shows of it."""
    is_special = tokenizer.is_special(score.token_id)
    own = tokenizer.name_of(score.token_id) if is_special else score.text
    shown = own if text is None else text
    return {"id": score.token_id, "text": shown, "logprob": score.logprob, "special": is_special}


def _end(reason: str, last: TokenScore | None, tokenizer: Tokenizer) -> str:
    """TGI's word for why a text ended."""
    if reason == "length":
        return "length"
    is_eos = last is not None and last.token_id in tokenizer.eos_token_ids
    return "eos_token" if is_eos else "stop_sequence"


class _Reply:
    """A result in TGI's shape."""

    def __init__(self, body: GenerationBody, tokenizer: Tokenizer, result: GenerateResult) -> None:
        self._body, self._tokenizer, self._result = body, tokenizer, result
        self._num_prompt = result.usage.prompt_tokens // result.num_samples

    def all(self) -> list[dict[str, Any]]:
        """One for each sequence wanted; of `best_of`, the likeliest with the others in its details."""
        choices = list(self._result.choices)
        given = self._body.parameters
        if given.best_of > 1:
            choices.sort(
                key=lambda choice: sum(s.logprob or 0.0 for s in choice.logprobs or ()), reverse=True
            )
            best, *others = map(self._one, choices)
            if "details" in best:
                best["details"]["best_of_sequences"] = [
                    {"generated_text": other["generated_text"], **other["details"]} for other in others
                ]
            return [best]
        return [self._one(choice) for choice in choices]

    def _one(self, choice: Choice) -> dict[str, Any]:
        given, scores = self._body.parameters, list(choice.logprobs or ())
        prefill: list[TokenScore] = []
        text = choice.text
        if given.decoder_input_details:
            prefill, scores = scores[: self._num_prompt], scores[self._num_prompt :]
            text = text[scores[0].offset :] if scores else ""
        reply = {"generated_text": self._body.inputs + text if given.return_full_text else text}
        if not given.details:
            return reply
        tokens = [_token(score, self._tokenizer) for score in scores]
        details = {
            "finish_reason": _end(choice.finish_reason, scores[-1] if scores else None, self._tokenizer),
            "generated_tokens": len(tokens),
            "seed": self._result.seed,
            "prefill": [
                {k: v for k, v in _token(s, self._tokenizer).items() if k != "special"} for s in prefill
            ],
            "tokens": tokens,
        }
        if given.top_n_tokens:
            details["top_tokens"] = [_top(score) for score in scores]
        return {**reply, "details": details}


def _top(score: TokenScore) -> list[dict[str, Any]]:
    return [
        {"id": token_id, "text": text, "logprob": logprob, "special": False}
        for token_id, (text, logprob) in zip(score.top_ids, score.top, strict=True)
    ]


class TgiFrames:
    """Events of one request as TGI's frames: one for each token, the last one with the whole text.

    Args:
        tokenizer: the model's.
        body: the request's body.
    """

    def __init__(self, tokenizer: Tokenizer, body: GenerationBody) -> None:
        self._tokenizer, self._body = tokenizer, body
        self._index = 0
        self._held: dict[str, Any] | None = None  # the newest frame: the last one says more
        self._last: TokenScore | None = None

    def of(self, event: Event) -> Iterator[bytes]:
        """See `service.api.sse.Frames`."""
        if isinstance(event, Token):
            for at, score in enumerate(event.logprobs):
                if self._held is not None:
                    yield frame(self._held)
                # the text of a step is told with its last token, where the tokens' own are not all of it
                text = event.text if at == len(event.logprobs) - 1 else ""
                self._index += 1
                self._last = score
                self._held = {
                    "index": self._index,
                    "token": _token(score, self._tokenizer, text),
                    "top_tokens": _top(score),
                    "generated_text": None,
                    "details": None,
                }
        if isinstance(event, Done):
            yield frame({**(self._held or {}), **self._end(event)})

    def _end(self, event: Done) -> dict[str, Any]:
        result = event.result
        assert isinstance(result, GenerateResult), "its task is of kind generate"
        choice = result.choices[0]
        prefix = self._body.inputs if self._body.parameters.return_full_text else ""
        details = {
            "finish_reason": _end(choice.finish_reason, self._last, self._tokenizer),
            "generated_tokens": result.usage.completion_tokens,
            "seed": result.seed,
            "input_length": result.usage.prompt_tokens,
        }
        return {"generated_text": prefix + choice.text, "details": details}

    def of_problem(self, problem: Problem, request_id: str) -> Iterable[bytes]:
        """See `service.api.sse.Frames`."""
        return [frame(problem.body("hugging_face", request_id))]
