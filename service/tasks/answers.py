"""Runs a question: reads every window, looks for likely answers, and ranks them across the windows.

`search` finds candidates; free answers get offsets only where they occur word for word. A job that goes on
never has more sequences in the engine than it was admitted with, or a few: the rest wait here for their turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

from model_store.borders import first_occurrence
from model_store.steps import Steps
from service.engine.job_stream import JobStream
from service.engine.sequence import SequenceOutput, SequenceRequest
from service.tasks.calls import QaAnswer, QaCall, QaResult
from service.tasks.events import Done, Event, Plan, Token
from service.tasks.job import timings, usage
from service.tasks.offload import Offloader, size_of
from service.tasks.qa import Reader
from service.tasks.search import Candidate, Frontier, Rollout, Window, no_answer_request, total_logprob
from service.tasks.spans import SpanAutomaton

T = TypeVar("T")

MIN_SIDE_BY_SIDE = 16  # sequences of one question that may run whatever it was admitted with
_MAX_ROUNDS = 3  # of branches, while an answer is known
_LAST_ROUND = 12


class QaRun:
    """One call under way.

    Args:
        job: with one sequence per window, in order.
        reader: how the task is read.
        call: what was asked.
        windows: the windows.
        offloader: does what grows with the context or with the alternatives that were looked at.
    """

    def __init__(
        self, job: JobStream, reader: Reader, call: QaCall, windows: list[Window], offloader: Offloader
    ) -> None:
        self._job = job
        self._offloader = offloader
        self._reader = reader
        self._call = call
        self._windows = windows
        self._rules = reader.rules(call)
        self._rollouts: dict[int, Rollout] = {i: Rollout(w) for i, w in enumerate(windows)}
        self._scored: dict[int, Window] = {}
        self._planned: deque[SequenceRequest] = deque()
        self._frontier = Frontier(self._rules, self._answer_of, _LAST_ROUND * self._width)
        self._is_search = reader.decoding.params.temperature == 0

    async def events(self) -> AsyncGenerator[Event]:
        """Yield the plan, the best answer as one token event, and the result."""
        yield Plan("windows", len(self._windows))
        self._add_scores()
        if not self._is_search:
            self._add([Rollout(window) for window in self._windows for _ in range(self._width - 1)])
        await self._finish_round()
        for round_number in range(_LAST_ROUND if self._is_search else 0):
            if round_number >= _MAX_ROUNDS and self._frontier.best:
                break
            branches = self._frontier.most_promising(self._width, self._floor(), self._call.num_answers)
            if not branches:
                break
            self._add(branches)
            await self._finish_round()
        answers = await self._offload(size_of([self._call.context]), self._answers())
        yield Token(0, answers[0].answer, finish_reason="stop")
        seed = self._reader.decoding.params.seed
        yield Done(QaResult(seed, answers, len(self._windows), usage(self._job), timings(self._job)))

    @property
    def _width(self) -> int:
        """Branches per round, or draws per window."""
        return max(6, 2 * self._call.num_answers)

    def _floor(self) -> float:
        """Below this, nothing can change the reply: no answer wins over one answer with a negative score."""
        is_enough = self._call.no_answer and self._call.num_answers == 1 and self._frontier.best
        return 0.0 if is_enough else float("-inf")

    def _add_scores(self) -> None:
        ids = self._reader.no_answer_ids
        seed, first = self._reader.decoding.params.seed, self._num_planned
        self._scored.update(enumerate(self._windows, first))
        self._plan([no_answer_request(w, ids, first + i, seed) for i, w in enumerate(self._windows)])

    def _add(self, rollouts: list[Rollout]) -> None:
        first = self._num_planned
        self._rollouts.update(enumerate(rollouts, first))
        self._plan([self._rules.request(rollout, first + i) for i, rollout in enumerate(rollouts)])

    @property
    def _num_planned(self) -> int:
        return self._job.num_submitted + len(self._planned)

    def _plan(self, requests: Sequence[SequenceRequest]) -> None:
        """Put sequences in line. Their order, hence index and ordinal, does not depend on when they start."""
        self._planned.extend(requests)
        self._start()

    def _start(self) -> None:
        """Start as many as there is room for beside those that run."""
        room = max(len(self._windows), MIN_SIDE_BY_SIDE) - len(self._job.unfinished)
        count = min(max(room, 0), len(self._planned))
        if count:
            self._job.extend([self._planned.popleft() for _ in range(count)])

    async def _finish_round(self) -> None:
        """Let everything that was planned finish or lose its prospects, then take the round's rollouts in."""
        floor = self._frontier.floor(self._floor(), self._call.num_answers)
        async for output in self._job:
            self._take(output, floor)
            self._start()
        num_looked_at = sum(len(step.top) for r in self._rollouts.values() for step in r.logprobs)
        await self._offload(num_looked_at, self._take_in(list(self._rollouts.values())))
        self._rollouts.clear()

    def _take_in(self, rollouts: list[Rollout]) -> Steps[None]:
        for rollout in rollouts:
            yield from self._frontier.add(rollout)

    async def _offload(self, size: int, work: Steps[T]) -> T:
        return await self._offloader.run(size, work, self._call.origin, is_admitted=True)

    def _take(self, output: SequenceOutput, floor: float) -> None:
        if output.index in self._scored:
            if output.prompt_logprobs:
                window = self._scored[output.index]
                logprob = total_logprob(output.prompt_logprobs)
                window.no_answer_logprob = logprob - self._reader.task.no_answer_penalty
            return
        rollout = self._rollouts[output.index]
        rollout.push(output)
        if output.finish_reason is None and rollout.bound <= floor:
            self._job.abort(output.index)

    def _answer_of(self, candidate: Candidate) -> str | None:
        """The text of a candidate; None when it is empty or says that there is no answer."""
        if isinstance(candidate.window.automaton, SpanAutomaton):
            span = self._span_of(candidate)
            return None if span is None else self._call.context[slice(*span)]
        text = self._reader.tokenizer.decode(candidate.output_ids)
        ends = [at for at in map(text.find, self._rules.params.stop) if at >= 0]
        text = text[: min(ends, default=len(text))].strip()
        return None if text.casefold() == self._reader.no_answer.casefold() else text

    def _span_of(self, candidate: Candidate) -> tuple[int, int] | None:
        """Where a grounded candidate stands in the context; None for free text, and for no answer."""
        window = candidate.window
        if not isinstance(window.automaton, SpanAutomaton):
            return None
        span = window.automaton.span(candidate.output_ids)
        if span is None:
            return None
        start, end = window.evidence.origin(*span)
        return window.start + start, window.start + end

    def _answers(self) -> Steps[tuple[QaAnswer, ...]]:
        answers: list[QaAnswer] = []
        for text, candidate in self._frontier.ranked()[: self._call.num_answers]:
            span = self._span_of(candidate)
            start = yield from first_occurrence(self._call.context, text, span and span[0])
            end = None if start is None else start + len(text)
            answers.append(QaAnswer(text, start, end, candidate.score))
        if not answers or (self._call.no_answer and answers[0].score < 0):
            answers.insert(0, QaAnswer("", None, None, answers[0].score if answers else 0.0))
        return tuple(answers[: self._call.num_answers])
