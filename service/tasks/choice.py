"""Chooses among a task's labels by likelihood.

A label's likelihood is that of its tokens and the end behind the prompt: what training maximised, so labels
of several tokens need no correction for their length. The scores are a softmax over the labels.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping

from model_store.sampling import SAMPLING
from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.job_stream import JobStream
from service.engine.sequence import SamplingParams, SequenceRequest
from service.errors import InvalidRequest
from service.tasks.calls import ChoiceResult, ModelLimits, Overflow, SamplingFields
from service.tasks.events import Done, Event, Token
from service.tasks.fitting import fit_fields
from service.tasks.job import check_job_size, timings, usage
from service.tasks.sampling import Decoding
from service.tasks.search import total_logprob


def check_neutral(sampling: SamplingFields) -> None:
    """Raise `InvalidRequest` for sampling fields that change nothing: labels are scored, not generated."""
    for name, value in sampling.items():
        is_greedy = name == "temperature" and value == 0
        if name != "seed" and value != SAMPLING[name].neutral and not is_greedy:
            raise InvalidRequest(
                f"{name} has no effect on a task of kind choice and must be left out or neutral", name
            )


def build_requests(
    task: Task,
    tokenizer: Tokenizer,
    fields: Mapping[str, str],
    limits: ModelLimits,
    overflow: Overflow,
) -> Steps[tuple[list[SequenceRequest], int]]:
    """Make a scored sequence for each label; they share the prompt.

    Returns:
        The sequences in the labels' order, and how many tokens of the document were dropped.

    Raises:
        PromptTooLong: prompt and longest label do not fit.
        InvalidRequest: there are more labels than a job may have sequences.
    """
    check_job_size(len(task.labels), limits, "labels")
    labels = [task.encode_answer(tokenizer, label) for label in task.labels]
    room = limits.n_positions - max(map(len, labels))
    nothing_new = Decoding(SamplingParams(), max_new_tokens=0, is_explicit=True)
    fitted = yield from fit_fields(task, tokenizer, fields, nothing_new, room, overflow)
    params = SamplingParams(max_new_tokens=0, temperature=0.0, score_from=len(fitted.prompt_ids))
    requests = [
        SequenceRequest((*fitted.prompt_ids, *ids), params, ordinal) for ordinal, ids in enumerate(labels)
    ]
    return requests, fitted.num_dropped


async def choice_events(job: JobStream, task: Task, seed: int, num_dropped: int) -> AsyncGenerator[Event]:
    """Yield the label as one token event, then the result."""
    logprobs = [0.0] * len(task.labels)
    async for output in job:
        if output.prompt_logprobs:
            logprobs[output.index] = total_logprob(output.prompt_logprobs)
    scores = dict(zip(task.labels, softmax(logprobs), strict=True))
    label = max(scores, key=lambda name: scores[name])
    yield Token(0, label, finish_reason="stop")
    yield Done(ChoiceResult(seed, label, scores, usage(job, num_dropped), timings(job)))


def softmax(logprobs: list[float]) -> list[float]:
    """Probabilities in proportion to exp(logprobs); they sum to 1."""
    highest = max(logprobs)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
