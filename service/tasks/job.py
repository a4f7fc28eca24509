"""What all tasks ask of a job: how large it may be, and the account of its tokens and its time.

The job itself is the engine's `JobStream`: sequences that were submitted together, and some added later.
Read `generate` for the simplest use.
"""

from __future__ import annotations

import time

from service.engine.job_stream import JobStream
from service.errors import InvalidRequest
from service.tasks.calls import ModelLimits, Timings, Usage


def usage(job: JobStream, num_dropped: int = 0) -> Usage:
    """Tokens of all sequences that have finished.

    Args:
        job: the job.
        num_dropped: tokens that `overflow` cut before it was submitted.
    """
    return Usage(
        prompt_tokens=sum(stats.num_prompt_tokens for stats in job.stats),
        completion_tokens=sum(stats.num_output_tokens for stats in job.stats),
        cached_tokens=sum(stats.num_cached_tokens for stats in job.stats),
        dropped_tokens=num_dropped,
    )


def timings(job: JobStream) -> Timings:
    """Wall time since submission, parted at the first sequence's start and at the first token."""
    total_s = time.monotonic() - job.submitted_at
    queue_s = min((stats.queue_s for stats in job.stats), default=total_s)
    first_token_s = min((stats.queue_s + stats.prefill_s for stats in job.stats), default=total_s)
    return Timings(
        queue_ms=_as_ms(queue_s),
        prefill_ms=_as_ms(first_token_s - queue_s),
        decode_ms=_as_ms(max(total_s - first_token_s, 0.0)),
        total_ms=_as_ms(total_s),
    )


def check_job_size(num_sequences: int, limits: ModelLimits, param: str) -> None:
    """Raise `InvalidRequest` when a job would start with too many sequences."""
    if num_sequences > limits.max_job_sequences:
        raise too_many_sequences(limits, param)


def too_many_sequences(limits: ModelLimits, param: str) -> InvalidRequest:
    """What to raise for a text that makes too many: it is not read to the end to tell how many."""
    limit = limits.max_job_sequences
    return InvalidRequest(
        f"{param} makes more than {limit} sequences; at most {limit} sequences in one request", param
    )


def _as_ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
