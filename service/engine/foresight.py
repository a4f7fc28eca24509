"""Refuses what cannot be done, in time or in the cache, before any of it is done.

Of the time, only log probabilities of prompts can be foreseen: each is a row of a forward pass, whatever the
prefix cache holds and whenever a text ends.
"""

from __future__ import annotations

import collections.abc
import time
from collections import defaultdict
from collections.abc import Iterable
from heapq import nsmallest

from service.engine.block_pool import BlockPool
from service.engine.sequence import Job, Sequence, SequenceRequest
from service.engine.step_cost import StepCost
from service.errors import InvalidRequest, QueueFull


def check_time(
    requests: collections.abc.Sequence[SequenceRequest],
    tenant: str,
    unfinished: Iterable[Sequence],
    cost: StepCost,
    deadline: float,
) -> None:
    """Refuse a job that takes longer than until its deadline, by itself or beside what was admitted before.

    Of that, only what has its turns before the job's last counts: as many sequences of each other job of the
    same tenant, and of each other tenant, as the job has itself, and the shortest, for that is sure.

    Args:
        requests: the job's.
        tenant: whose job it is.
        unfinished: sequences that wait or run.
        cost: knows what a prompt takes at its quickest.
        deadline: on the monotonic clock.

    Raises:
        InvalidRequest: by itself.
        QueueFull: beside the others.
    """
    spans = [span for request in requests if (span := _scored(request))]
    left_s, own_s = max(deadline - time.monotonic(), 0.0), sum(cost.min_scoring_s(*span) for span in spans)
    if own_s > left_s:
        num_tokens = sum(end - start for start, end in spans)
        raise InvalidRequest(
            f"the log probabilities of {num_tokens} tokens of prompts take about {own_s:.0f} s here, and "
            f"this request has {left_s:.0f} s; ask for fewer at a time"
        )
    by_turns: defaultdict[Job | str, list[float]] = defaultdict(list)
    for sequence in unfinished:
        if span := _unscored(sequence):
            job = sequence.job
            by_turns[job if job.tenant == tenant else job.tenant].append(cost.min_scoring_s(*span))
    before_s = sum(sum(nsmallest(len(spans), others)) for others in by_turns.values())
    excess_s = own_s + before_s - left_s
    if excess_s > 0:
        raise QueueFull(
            "the log probabilities that others asked for take the time this request has", excess_s
        )


def is_too_late(unfinished: Iterable[Sequence], cost: StepCost, deadline: float) -> bool:
    """Whether what is left of a job cannot be done by its deadline any more, even if all others left."""
    left_s = sum(cost.min_scoring_s(*span) for sequence in unfinished if (span := _unscored(sequence)))
    return left_s > 0 and left_s > deadline - time.monotonic()


def check_cache(requests: Iterable[SequenceRequest], pool: BlockPool) -> None:
    """Refuse a beam search that the whole cache might not hold; one sequence it always does.

    Args:
        requests: a job's.
        pool: the cache's; only its size is read.

    Raises:
        InvalidRequest: says how much the search may need.
    """
    size, held = pool.block_size, pool.num_blocks
    for request in requests:
        num_prompt, num_beams = len(request.prompt_ids), request.params.num_beams
        shared = num_prompt // size  # by all beams: the blocks that the prompt fills
        own = pool.blocks_for(num_prompt + request.params.max_new_tokens) - shared
        needed = shared + num_beams * own
        if num_beams > 1 and needed > held:
            what = f"may need {needed * size} tokens of the cache, which holds {held * size}"
            raise InvalidRequest(
                f"num_beams must be less, or the texts shorter: the search {what}", "num_beams"
            )


def _scored(request: SequenceRequest) -> tuple[int, int] | None:
    """From where to where the log probabilities of a prompt are wanted; None where none is."""
    start, end = request.params.score_from, len(request.prompt_ids)
    return None if start is None or start >= end else (start, end)


def _unscored(sequence: Sequence) -> tuple[int, int] | None:
    """What of that is still to be computed."""
    span = _scored(sequence.request)
    start = 0 if span is None else span[0] + len(sequence.prompt_logprobs)
    return None if span is None or start >= span[1] else (start, span[1])
