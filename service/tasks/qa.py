"""Answers questions about a context of any length, with a score that compares across its windows.

The context is read in overlapping windows whose borders do not depend on the question: many questions on one
document share every window's prefix in the cache. A task with evidence instead reads the sentences that suit
the question, out of one window as large as the document. `search` finds likely answers. Grounded
answers are spans of the context by construction (`spans`); free ones get offsets only where they occur word
for word. Answers are compared with what the model says when there is none (`Task.no_answer`; a model that
never learned any is compared with FALLBACK_NO_ANSWER). Read `choice` next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from model_store.borders import first_occurrence
from model_store.evidence import SEPARATOR
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.sequence import SequenceRequest
from service.errors import PromptTooLong
from service.tasks.calls import ModelLimits, QaAnswer, QaCall, QaResult
from service.tasks.chunking import Document, Excess, Span, stripped, windows
from service.tasks.events import Done, Event, Plan, Token
from service.tasks.job import Job, check_job_size
from service.tasks.sampling import Decoding, check_neutral
from service.tasks.search import Candidate, Frontier, Rollout, Rules, Window, no_answer_request, total_logprob
from service.tasks.spans import FINISH_TOKENS, SpanAutomaton
from service.tasks.vocabulary import Vocabulary

FALLBACK_NO_ANSWER = "I don't know."
MIN_WINDOW_TOKENS = 16
MAX_OVERLAP_TOKENS = 128
_QUESTION_STEP = 64  # questions are given room in steps of so many tokens
_MAX_ROUNDS = 3  # of branches, while an answer is known
_LAST_ROUND = 12
_LOOK_FOR_ONE = 128  # alternatives per step; any other token has less than 1/128 of the probability
_LOOK_FOR_MANY = 512


@dataclass(frozen=True, slots=True)
class Reader:
    """How a task's questions are read.

    Args:
        task: of kind qa.
        tokenizer, vocabulary: the model's.
        decoding: resolved sampling fields.
        limits: of the model.
    """

    task: Task
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    decoding: Decoding
    limits: ModelLimits

    @property
    def end_id(self) -> int:
        """What ends an answer: the end of text, or the stop string of a model that never learned to end
        one.
        """
        if not self.task.no_answer and self.task.stop:
            ids = self.tokenizer.encode(self.task.stop[0])
            if len(ids) == 1:
                return ids[0]
        return self.tokenizer.eos_id

    @property
    def no_answer(self) -> str:
        """What stands for no answer."""
        return self.task.no_answer or FALLBACK_NO_ANSWER

    @property
    def no_answer_ids(self) -> list[int]:
        """Its tokens, the end included."""
        return [*self.task.encode_answer(self.tokenizer, self.no_answer)[:-1], self.end_id]

    def max_output(self, call: QaCall) -> int:
        """Tokens a rollout may have, the end included."""
        return self.decoding.max_new_tokens + (1 + FINISH_TOKENS if call.grounded else 0)

    def rules(self, call: QaCall) -> Rules:
        """Sampling parameters of the rollouts."""
        params = self.decoding.params_for(self.max_output(call))
        end_ids: tuple[int, ...] = (self.end_id,)
        if call.grounded:
            # The automaton keeps away from stop strings, and a task's defaults are for free text.
            params = replace(params, stop=(), repetition_penalty=1.0, no_repeat_ngram_size=0)
            params = replace(params, min_new_tokens=0)
        else:
            end_ids = tuple(dict.fromkeys((self.end_id, *self.tokenizer.eos_token_ids)))
        stop_ids = tuple(dict.fromkeys((*params.stop_token_ids, self.end_id)))
        looked_at = _LOOK_FOR_ONE if call.num_answers == 1 else _LOOK_FOR_MANY
        return Rules(replace(params, stop_token_ids=stop_ids), end_ids, looked_at)

    def read(self, call: QaCall) -> list[Window]:
        """Plan the windows and build what constrains them.

        Raises:
            PromptTooLong: the question, or `max_new_tokens`, leaves no room for the context.
            InvalidRequest: there are more windows than a job may have.
        """
        document = Document(call.context, self.tokenizer)
        capacity = self._capacity(call)
        overlap = min(MAX_OVERLAP_TOKENS, capacity // 4)
        if self.task.evidence:  # the prompt holds little of a window, which may be the whole document
            capacity = max(capacity, document.num_tokens(0, len(call.context)))
        spans = windows(document, capacity, overlap, self._excess(call))
        spans = [span for span in (stripped(call.context, s) for s in spans) if span.end > span.start]
        check_job_size(len(spans), self.limits, self._document)
        return [self._window(call, span) for span in spans]

    def _excess(self, call: QaCall) -> Excess:
        """Tokens too many in a window; the same for every question, unless the question chooses what is
        read.
        """
        reserve = self._reserve(call)
        question = ""
        if self.task.evidence:
            question, reserve = call.question, self._reserve_for_answer(call)

        def excess(start: int, end: int) -> int:
            text = call.context[start:end].strip()
            return len(self._encode(text, question)) + reserve - self.limits.n_positions

        return excess

    @property
    def _document(self) -> str:
        return self.task.document or "context"

    def _window(self, call: QaCall, span: Span) -> Window:
        text = call.context[span.start : span.end]
        fields = _fields(text, call.question)
        evidence = self.task.read(fields)
        automaton = None
        if call.grounded:
            stop = (call.sampling.stop or ()) + ((SEPARATOR,) if self.task.evidence else ())
            longest = self.decoding.max_new_tokens
            automaton = SpanAutomaton(evidence.text, self.vocabulary, self.end_id, longest, stop)
        return Window(tuple(self.task.encode(self.tokenizer, fields)), span.start, evidence, automaton)

    def _encode(self, context: str, question: str) -> list[int]:
        return self.task.encode(self.tokenizer, _fields(context, question))

    def _reserve(self, call: QaCall) -> int:
        """Tokens kept free for question and answer: the question's rounded up, so that windows stay the
        same.
        """
        asked = len(self._encode("", call.question)) - len(self._encode("", ""))
        steps = max(-(-asked // _QUESTION_STEP), 1)
        return steps * _QUESTION_STEP + self._reserve_for_answer(call)

    def _reserve_for_answer(self, call: QaCall) -> int:
        return max(self.max_output(call), len(self.no_answer_ids))

    def _capacity(self, call: QaCall) -> int:
        """Tokens of context that fit one window."""
        capacity = self.limits.n_positions - len(self._encode("", "")) - self._reserve(call)
        if capacity >= MIN_WINDOW_TOKENS:
            return capacity
        most = self.decoding.max_new_tokens + capacity - MIN_WINDOW_TOKENS
        reason = f"or a window of {self.limits.n_positions} tokens has no room for the context"
        if most >= 1:
            raise PromptTooLong(f"max_new_tokens must be at most {most}, {reason}", "max_new_tokens")
        raise PromptTooLong(f"question must be shorter, {reason}", "question")


def _fields(context: str, question: str) -> dict[str, str]:
    return {"context": context, "question": question.strip()}


# Fields without meaning for a span, which repeats the prompt by nature, and their neutral values.
_FREE_ONLY = {
    "min_new_tokens": 0,
    "ignore_eos": False,
    "repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
}


def check_sampling(call: QaCall) -> None:
    """Raise `InvalidRequest` for sampling fields that have no meaning for a span of the context."""
    if call.grounded:
        check_neutral(call.sampling, _FREE_ONLY, "when grounded is true")


class QaRun:
    """One call under way.

    Args:
        job: with one sequence per window, in order.
        reader: how the task is read.
        call: what was asked.
        found: the windows.
    """

    def __init__(self, job: Job, reader: Reader, call: QaCall, found: list[Window]) -> None:
        self._job = job
        self._reader = reader
        self._call = call
        self._windows = found
        self._rules = reader.rules(call)
        self._rollouts: dict[int, Rollout] = {i: Rollout(w) for i, w in enumerate(found)}
        self._scored: dict[int, Window] = {}
        self._frontier = Frontier(self._rules, self._answer_of)
        self._is_search = reader.decoding.params.temperature == 0

    async def events(self) -> AsyncIterator[Event]:
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
        answers = self._answers()
        yield Token(0, answers[0].answer, finish_reason="stop")
        seed = self._reader.decoding.params.seed
        yield Done(QaResult(seed, answers, len(self._windows), self._job.usage(), self._job.timings()))

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
        seed = self._reader.decoding.params.seed
        first = self._job.num_sequences
        requests = [no_answer_request(w, ids, first + i, seed) for i, w in enumerate(self._windows)]
        indices = self._job.extend(requests)
        self._scored.update(zip(indices, self._windows, strict=True))

    def _add(self, rollouts: list[Rollout]) -> None:
        first = self._job.num_sequences
        requests = [self._rules.request(rollout, first + i) for i, rollout in enumerate(rollouts)]
        self._rollouts.update(zip(self._job.extend(requests), rollouts, strict=True))

    async def _finish_round(self) -> None:
        """Let everything that runs finish or lose its prospects, then take the round's rollouts in."""
        floor = self._frontier.floor(self._floor(), self._call.num_answers)
        async for output in self._job.outputs():
            if output.index in self._scored:
                if output.prompt_logprobs:
                    window = self._scored[output.index]
                    logprob = total_logprob(output.prompt_logprobs)
                    window.no_answer_logprob = logprob - self._reader.task.no_answer_penalty
            else:
                rollout = self._rollouts[output.index]
                rollout.push(output)
                if output.finish_reason is None and rollout.bound <= floor:
                    self._job.abort(output.index)
        for rollout in self._rollouts.values():
            self._frontier.add(rollout)
        self._rollouts.clear()

    def _answer_of(self, candidate: Candidate) -> str | None:
        """The text of a candidate; None when it is empty or says that there is no answer."""
        window = candidate.window
        if isinstance(window.automaton, SpanAutomaton):
            span = window.automaton.span(candidate.output_ids)
            if span is None:
                return None
            start, end = window.evidence.origin(*span)
            return self._call.context[window.start + start : window.start + end]
        text = self._reader.tokenizer.decode(candidate.output_ids)
        ends = [at for at in map(text.find, self._rules.params.stop) if at >= 0]
        text = text[: min(ends, default=len(text))].strip()
        return None if text.casefold() == self._reader.no_answer.casefold() else text

    def _answers(self) -> tuple[QaAnswer, ...]:
        ranked = self._frontier.ranked()[: self._call.num_answers]
        answers = [self._located(text, candidate.score) for text, candidate in ranked]
        if not answers or (self._call.no_answer and answers[0].score < 0):
            answers.insert(0, QaAnswer("", None, None, answers[0].score if answers else 0.0))
        return tuple(answers[: self._call.num_answers])

    def _located(self, text: str, score: float) -> QaAnswer:
        start = first_occurrence(self._call.context, text)
        return QaAnswer(text, start, None if start is None else start + len(text), score)


def window_requests(reader: Reader, call: QaCall, found: list[Window]) -> list[SequenceRequest]:
    """The first sequences of a call: one greedy or drawn rollout per window."""
    rules = reader.rules(call)
    return [rules.request(Rollout(window), ordinal) for ordinal, window in enumerate(found)]
