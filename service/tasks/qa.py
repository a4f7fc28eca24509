"""How a context of any length is read for a question, so that scores compare across its windows.

The context is read in overlapping windows whose borders do not depend on the question: many questions on one
document share every window's prefix in the cache. A task with evidence instead reads the sentences that suit
the question, out of one window as large as the document. Grounded answers are spans of the context by
construction (`spans`). Answers are compared with what the model says when there is none (`Task.no_answer`; a
model that never learned any is compared with FALLBACK_NO_ANSWER). Nothing runs here: read `answers` next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model_store.evidence import SENTENCE_BREAK
from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.sequence import SequenceRequest
from service.errors import PromptTooLong
from service.tasks.calls import ModelLimits, QaCall
from service.tasks.chunking import Excess, stripped, windows
from service.tasks.documents import Span, read_document
from service.tasks.job import check_job_size, too_many_sequences
from service.tasks.rendering import has_more_tokens, read, render, render_read
from service.tasks.sampling import Decoding, check_neutral
from service.tasks.search import Rollout, Rules, Window
from service.tasks.spans import FINISH_TOKENS, SpanAutomaton
from service.tasks.vocabulary import Vocabulary

FALLBACK_NO_ANSWER = "I don't know."
MIN_WINDOW_TOKENS = 16
MAX_OVERLAP_TOKENS = 128
_QUESTION_STEP = 64  # questions are given room in steps of so many tokens
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
        """What ends an answer: the end of text, or the stop string where a model never learned that."""
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
        params = replace(self.decoding.params, max_new_tokens=self.max_output(call))
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

    def read(self, call: QaCall) -> Steps[list[Window]]:
        """Plan the windows and build what constrains them.

        Raises:
            PromptTooLong: the question, or `max_new_tokens`, leaves no room for the context.
            InvalidRequest: there are more windows than a job may have.
        """
        if (yield from has_more_tokens(self.tokenizer, call.question.strip(), self.limits.n_positions)):
            raise self._question_too_long()
        capacity = self._capacity(call)
        if self.task.evidence:  # most often, the sentences that suit the question fit
            window = yield from self._window(call, stripped(call.context, Span(0, len(call.context))))
            if len(window.prompt_ids) + self._reserve_for_answer(call) <= self.limits.n_positions:
                return [window]
        spans = yield from self._spans(call, capacity)
        spans = [span for span in (stripped(call.context, s) for s in spans) if span.end > span.start]
        check_job_size(len(spans), self.limits, self._document)
        windows: list[Window] = []
        for span in spans:
            windows.append((yield from self._window(call, span)))
        return windows

    def _spans(self, call: QaCall, capacity: int) -> Steps[list[Span]]:
        overlap, max_windows = min(MAX_OVERLAP_TOKENS, capacity // 4), self.limits.max_job_sequences
        # Of each window, one token more may begin in the white space before it.
        max_tokens = None if self.task.evidence else max_windows * (capacity + 1)
        document = yield from read_document(call.context, self.tokenizer, max_tokens)
        if document is None:
            raise too_many_sequences(self.limits, self._document)
        if self.task.evidence:  # the prompt holds little of a window, which may be the whole document
            capacity = max(capacity, document.num_tokens(0, len(call.context)))
        return (yield from windows(document, capacity, overlap, self._excess(call), max_windows))

    def _excess(self, call: QaCall) -> Excess:
        """Tokens too many in a window; the same for all questions, unless they choose what is read."""
        reserve = self._reserve(call)
        question = ""
        if self.task.evidence:
            question, reserve = call.question, self._reserve_for_answer(call)

        def excess(start: int, end: int) -> Steps[int]:
            fields = _fields(call.context[start:end].strip(), question)
            ids = yield from render(self.task, self.tokenizer, fields)
            return len(ids) + reserve - self.limits.n_positions

        return excess

    @property
    def _document(self) -> str:
        return self.task.document or "context"

    def _window(self, call: QaCall, span: Span) -> Steps[Window]:
        text = call.context[span.start : span.end]
        fields = _fields(text, call.question)
        evidence = yield from read(self.task, fields)
        automaton = None
        if call.grounded:
            stop = call.sampling.get("stop", ()) + ((SENTENCE_BREAK,) if self.task.evidence else ())
            longest = self.decoding.max_new_tokens
            automaton = SpanAutomaton(evidence.text, self.vocabulary, self.end_id, longest, stop)
        ids = yield from render_read(self.task, self.tokenizer, fields, evidence)
        return Window(tuple(ids), span.start, evidence, automaton)

    def _encode(self, context: str, question: str) -> list[int]:
        return self.task.encode(self.tokenizer, _fields(context, question))

    def _reserve(self, call: QaCall) -> int:
        """Tokens kept free for question and answer; rounded up, so that windows stay the same."""
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
        limit = self.decoding.max_new_tokens + capacity - MIN_WINDOW_TOKENS
        reason = f"or a window of {self.limits.n_positions} tokens has no room for the context"
        if limit >= 1:
            raise PromptTooLong(f"max_new_tokens must be at most {limit}, {reason}", "max_new_tokens")
        raise self._question_too_long()

    def _question_too_long(self) -> PromptTooLong:
        reason = f"or a window of {self.limits.n_positions} tokens has no room for the context"
        return PromptTooLong(f"question must be shorter, {reason}", "question")


def _fields(context: str, question: str) -> dict[str, str]:
    return {"context": context, "question": question.strip()}


# Fields without meaning for a span, which repeats the prompt by nature.
_FREE_ONLY = ("min_new_tokens", "ignore_eos", "repetition_penalty", "no_repeat_ngram_size")


def check_sampling(call: QaCall) -> None:
    """Raise `InvalidRequest` for sampling fields that have no meaning for a question, or for a span."""
    check_neutral(call.sampling, ("num_beams", "num_return_sequences"), "for a question; see num_answers")
    if call.grounded:
        check_neutral(call.sampling, _FREE_ONLY, "when grounded is true")


def window_requests(reader: Reader, call: QaCall, windows: list[Window]) -> list[SequenceRequest]:
    """The first sequences of a call: one greedy or drawn rollout per window."""
    rules = reader.rules(call)
    return [rules.request(Rollout(window), ordinal) for ordinal, window in enumerate(windows)]
