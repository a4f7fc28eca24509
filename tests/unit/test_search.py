"""The search for answers keeps no more branches than it may take, and takes the same."""

from __future__ import annotations

import random

from model_store.evidence import whole
from model_store.steps import finish
from service.engine.sequence import SamplingParams, TokenLogprob
from service.tasks.search import Frontier, Rollout, Rules, Window

RULES = Rules(SamplingParams(max_new_tokens=30, temperature=0.0), end_ids=(0,), num_alternatives=50)


def rollouts(count: int) -> list[Rollout]:
    """Finished sequences of 20 tokens, 50 others likely at each."""
    rng = random.Random(count)
    window, found = Window((1, 2), 0, whole(""), None), []
    for _ in range(count):
        steps = [
            TokenLogprob(1, -1.0, tuple((token_id, rng.uniform(-9.0, -1.0)) for token_id in range(1, 51)))
            for _ in range(20)
        ]
        found.append(Rollout(window, (), rng.uniform(-5.0, 0.0), [1] * 20, steps))
    return found


def test_what_is_kept_is_bounded_and_nothing_that_would_be_taken_is_missing() -> None:
    bounded, free = (Frontier(RULES, lambda candidate: None, limit) for limit in (40, 10**9))
    for of_a_round in (rollouts(3), rollouts(2), rollouts(4), rollouts(1)):
        for rollout in of_a_round:
            finish(bounded.add(rollout))
            finish(free.add(rollout))
            assert len(bounded._branches) <= 2 * 40 + 50
        taken, wanted = (each.most_promising(10, float("-inf"), 1) for each in (bounded, free))
        assert len(wanted) == 10
        assert [(r.prefix_ids, r.prefix_logprob) for r in taken] == [
            (r.prefix_ids, r.prefix_logprob) for r in wanted
        ]
    assert len(free._branches) > 9000
