"""Looks for the most probable answers of several windows at once, exactly as far as it looks.

Every window is read by one greedy sequence, under the window's automaton. Its log probabilities say, for each
step, which other tokens were likely: an end there is a complete candidate, another token starts a branch. A
branch is worth at most the log probability of its beginning, so branches are tried best first and dropped as
soon as that bound is no better than the answers found (Lawler's partition: no answer is met twice). The
prefix cache makes a branch cost a few decode steps. Read `qa` next.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from service.engine.sequence import SamplingParams, SequenceOutput, SequenceRequest, TokenLogprob
from service.tasks.spans import Automaton, Forced


@dataclass(slots=True)
class Window:
    """A window of the context, rendered.

    Args:
        prompt_ids: the whole prompt.
        start: where the window's text starts in the context, code points.
        automaton: the answers possible here; None for free text.
    """

    prompt_ids: tuple[int, ...]
    start: int
    automaton: Automaton | None
    no_answer_logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete answer of a window, the end not among its tokens.

    Args:
        output_ids: its tokens.
        score: log p(answer, end) - log p(no answer, end).
        text: what the engine showed, for free text that ended by a stop string; None if the tokens say it
            all.
    """

    window: Window
    output_ids: tuple[int, ...]
    score: float
    text: str | None = None


@dataclass(slots=True)
class Rollout:
    """A sequence that follows a forced beginning and then goes on as the model likes."""

    window: Window
    prefix_ids: tuple[int, ...]
    text: str = ""
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    is_stopped: bool = False

    def push(self, output: SequenceOutput) -> None:
        """Take the engine's news."""
        self.text += output.text
        self.output_ids += output.token_ids
        self.logprobs += output.logprobs
        self.is_stopped = output.finish_reason == "stop"


@dataclass(frozen=True, slots=True)
class Branch:
    """A beginning nobody has followed yet; `bound` is the best score it can lead to."""

    window: Window
    prefix_ids: tuple[int, ...]
    bound: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What the search's sequences have in common.

    Args:
        params: sampling parameters of a rollout, length included.
        end_ids: tokens that end an answer, the one that is scored first.
        vocab_size: how many tokens there are.
        num_alternatives: tokens looked at per step, the likeliest of all, allowed or not.
    """

    params: SamplingParams
    end_ids: tuple[int, ...]
    vocab_size: int
    num_alternatives: int

    def request(self, rollout: Rollout, ordinal: int) -> SequenceRequest:
        """The sequence of a rollout."""
        automaton = rollout.window.automaton
        allowed: Automaton | None = automaton
        if rollout.prefix_ids:
            allowed = Forced(rollout.prefix_ids, automaton, self.vocab_size)
        params = replace(self.params, allowed_next=allowed, logprobs=self.num_alternatives)
        return SequenceRequest(rollout.window.prompt_ids, params, ordinal)


class Frontier:
    """Candidates found and branches left.

    Args:
        rules: what ends an answer.
        answer_of: the text a candidate stands for; None if it is no answer at all.
    """

    def __init__(self, rules: Rules, answer_of: Callable[[Candidate], str | None]) -> None:
        self._rules = rules
        self._answer_of = answer_of
        self._branches: list[tuple[float, int, Branch]] = []
        self._ties = itertools.count()
        self.best: dict[str, Candidate] = {}  # by answer

    def add(self, rollout: Rollout) -> None:
        """Take in a finished rollout: its answer, the ends it passed by, the branches it did not take."""
        before = -rollout.window.no_answer_logprob
        for place, step in enumerate(rollout.logprobs):
            if place >= len(rollout.prefix_ids):
                self._look_aside(rollout, place, before)
            if step.token_id in self._rules.end_ids:
                self._offer(Candidate(rollout.window, tuple(rollout.output_ids[:place]), _plus(before, step)))
                return
            before = _plus(before, step)
        if rollout.window.automaton is None:  # cut by its length or by a stop string
            ids = tuple(rollout.output_ids)
            self._offer(Candidate(rollout.window, ids, before, rollout.text if rollout.is_stopped else None))

    def _look_aside(self, rollout: Rollout, place: int, before: float) -> None:
        """Note the likely tokens that were not taken at a step."""
        prefix = tuple(rollout.output_ids[:place])
        automaton = rollout.window.automaton
        allowed = None if automaton is None else frozenset(automaton(prefix))
        for token_id, logprob in rollout.logprobs[place].top:
            if token_id == rollout.output_ids[place] or (allowed is not None and token_id not in allowed):
                continue
            if token_id in self._rules.end_ids:
                self._offer(Candidate(rollout.window, prefix, before + logprob))
            elif math.isfinite(logprob):
                branch = Branch(rollout.window, (*prefix, token_id), before + logprob)
                heapq.heappush(self._branches, (-branch.bound, next(self._ties), branch))

    def _offer(self, candidate: Candidate) -> None:
        answer = self._answer_of(candidate)
        if answer and (answer not in self.best or candidate.score > self.best[answer].score):
            self.best[answer] = candidate

    def ranked(self) -> list[tuple[str, Candidate]]:
        """Distinct answers, best first; equal scores in the order they were found."""
        return sorted(self.best.items(), key=lambda item: -item[1].score)

    def most_promising(self, width: int, floor: float, num_answers: int) -> list[Rollout]:
        """Take up to `width` branches that may lead to something better than what is known.

        Args:
            width: how many at most.
            floor: scores below are of no interest.
            num_answers: how many answers are wanted: the last of them is what a branch has to beat.
        """
        ranked = self.ranked()
        if len(ranked) >= num_answers:
            floor = max(floor, ranked[num_answers - 1][1].score)
        rollouts: list[Rollout] = []
        while self._branches and len(rollouts) < width and -self._branches[0][0] > floor:
            branch = heapq.heappop(self._branches)[2]
            rollouts.append(Rollout(branch.window, branch.prefix_ids))
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


def _plus(before: float, step: TokenLogprob) -> float:
    return before + (step.logprob or 0.0)
