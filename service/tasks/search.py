"""Looks for the most probable answers of several windows at once, exactly as far as it looks.

Every window is read by one greedy sequence, under the window's automaton. Its log probabilities say, for each
step, which other tokens were likely: an end there is a complete candidate, another token starts a branch. A
branch is worth at most the log probability of its beginning, so branches are tried best first and dropped as
soon as that bound is no better than the answers found (Lawler's partition: no answer is met twice). The
prefix cache makes a branch cost a short prefill and a few decode steps.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from model_store.evidence import Evidence
from model_store.steps import Steps
from service.engine.sequence import SamplingParams, SequenceOutput, SequenceRequest, TokenLogprob
from service.tasks.spans import Automaton, Continued


@dataclass(slots=True)
class Window:
    """A window of the context, rendered.

    Args:
        prompt_ids: the whole prompt.
        start: where the window starts in the context, code points.
        evidence: what of the window the prompt holds; answers are spans of it.
        automaton: the answers possible here; None for free text.
    """

    prompt_ids: tuple[int, ...]
    start: int
    evidence: Evidence
    automaton: Automaton | None
    no_answer_logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete answer of a window, the end not among its tokens.

    Args:
        output_ids: its tokens.
        score: log p(answer, end) - log p(no answer, end).
    """

    window: Window
    output_ids: tuple[int, ...]
    score: float


@dataclass(slots=True)
class Rollout:
    """A sequence that starts behind a beginning of an answer and then goes on as the model likes.

    Args:
        prefix_ids: the beginning; part of the sequence's prompt.
        prefix_logprob: its log probability.
    """

    window: Window
    prefix_ids: tuple[int, ...] = ()
    prefix_logprob: float = 0.0
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def push(self, output: SequenceOutput) -> None:
        """Take an output of the engine."""
        self.output_ids += output.token_ids
        self.logprobs += output.logprobs

    @property
    def bound(self) -> float:
        """The best score it can still lead to, once its window's no-answer text is scored."""
        own = math.fsum(step.logprob or 0.0 for step in self.logprobs)
        return self.prefix_logprob + own - self.window.no_answer_logprob

    def answer_ids(self, length: int) -> tuple[int, ...]:
        """The answer up to the rollout's `length`-th own token."""
        return (*self.prefix_ids, *self.output_ids[:length])


@dataclass(frozen=True, slots=True)
class Rules:
    """What the search's sequences have in common.

    Args:
        params: sampling parameters of a rollout without a beginning, length included.
        end_ids: tokens that end an answer, the one that is scored first.
        num_alternatives: tokens looked at per step, the likeliest of all, allowed or not.
    """

    params: SamplingParams
    end_ids: tuple[int, ...]
    num_alternatives: int

    def request(self, rollout: Rollout, ordinal: int) -> SequenceRequest:
        """The sequence of a rollout."""
        window, prefix = rollout.window, rollout.prefix_ids
        params = replace(
            self.params,
            max_new_tokens=self.params.max_new_tokens - len(prefix),
            allowed_next=window.automaton and Continued(prefix, window.automaton),
            logprobs=self.num_alternatives,
        )
        return SequenceRequest((*window.prompt_ids, *prefix), params, ordinal)


class Frontier:
    """Candidates found and branches left.

    Args:
        rules: what ends an answer.
        answer_of: the text a candidate stands for; None if it is no answer at all.
        max_branches: how many may be taken, ever; worse ones are not kept.
    """

    def __init__(self, rules: Rules, answer_of: Callable[[Candidate], str | None], max_branches: int) -> None:
        self._rules = rules
        self._answer_of = answer_of
        self._max_branches = max_branches
        self._branches: list[tuple[float, int, Rollout]] = []  # by bound, the highest first
        self._ties = itertools.count()
        self.best: dict[str, Candidate] = {}  # by answer

    def add(self, rollout: Rollout) -> Steps[None]:
        """Take in a finished rollout: its answer, the ends it passed by, the branches it did not take."""
        logprob = rollout.prefix_logprob
        for index, step in enumerate(rollout.logprobs):
            self._look_aside(rollout, index, logprob)
            if len(self._branches) > 2 * self._max_branches:
                self._branches = heapq.nsmallest(self._max_branches, self._branches)
            yield
            logprob += step.logprob or 0.0
            if step.token_id in self._rules.end_ids:
                self._offer(rollout, index, logprob)
                return
        if rollout.window.automaton is None:  # cut by its length or by a stop string
            self._offer(rollout, len(rollout.output_ids), logprob)

    def _look_aside(self, rollout: Rollout, index: int, before: float) -> None:
        """Note the likely tokens that were not taken at a step."""
        prefix = rollout.answer_ids(index)
        automaton = rollout.window.automaton
        allowed = None if automaton is None else frozenset(automaton(prefix))
        has_room = len(prefix) + 1 < self._rules.params.max_new_tokens
        for token_id, logprob in rollout.logprobs[index].top:
            if token_id == rollout.output_ids[index] or (allowed is not None and token_id not in allowed):
                continue
            if token_id in self._rules.end_ids:
                self._offer(rollout, index, before + logprob)
            elif has_room and math.isfinite(logprob):
                branch = Rollout(rollout.window, (*prefix, token_id), before + logprob)
                bound = branch.prefix_logprob - branch.window.no_answer_logprob
                heapq.heappush(self._branches, (-bound, next(self._ties), branch))

    def _offer(self, rollout: Rollout, length: int, logprob: float) -> None:
        score = logprob - rollout.window.no_answer_logprob
        candidate = Candidate(rollout.window, rollout.answer_ids(length), score)
        answer = self._answer_of(candidate)
        if answer and (answer not in self.best or score > self.best[answer].score):
            self.best[answer] = candidate

    def ranked(self) -> list[tuple[str, Candidate]]:
        """Distinct answers, best first; equal scores in the order they were found."""
        return sorted(self.best.items(), key=lambda item: -item[1].score)

    def floor(self, floor: float, num_answers: int) -> float:
        """The score to beat: `floor`, or that of the last wanted answer where so many are known."""
        ranked = self.ranked()
        return max(floor, ranked[num_answers - 1][1].score) if len(ranked) >= num_answers else floor

    def most_promising(self, width: int, floor: float, num_answers: int) -> list[Rollout]:
        """Take up to `width` branches that may lead to something better than what is known.

        Args:
            width: how many at most.
            floor: scores below are of no interest.
            num_answers: how many answers are wanted: the last of them is what a branch has to beat.
        """
        floor = self.floor(floor, num_answers)
        rollouts: list[Rollout] = []
        while self._branches and len(rollouts) < width and -self._branches[0][0] > floor:
            rollouts.append(heapq.heappop(self._branches)[2])
        return rollouts


def no_answer_request(
    window: Window, no_answer_ids: Sequence[int], ordinal: int, seed: int
) -> SequenceRequest:
    """The sequence that scores the no-answer text behind a window's prompt."""
    size = len(window.prompt_ids)
    params = SamplingParams(max_new_tokens=0, temperature=0.0, seed=seed, score_from=size)
    return SequenceRequest((*window.prompt_ids, *no_answer_ids), params, ordinal)


def total_logprob(scores: Sequence[TokenLogprob]) -> float:
    """Log probability of scored tokens together."""
    return math.fsum(score.logprob or 0.0 for score in scores)
