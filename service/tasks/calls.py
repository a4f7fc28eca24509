"""What a task is asked for and what it gives back: frozen data between the HTTP dialects and the task runner.

A sampling field that is not given takes the task's own default (`model_store.task.Task.sampling`), then the
contract's, in `service.tasks.sampling`. Nothing here validates: the HTTP layer checks types and shapes, the
runner checks ranges and lengths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Overflow = Literal["error", "truncate_left"]
Strategy = Literal["auto", "single", "map_reduce"]

# The sampling fields of a request as given, by the names of `model_store.sampling.SAMPLING`.
SamplingFields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, and how the answer is wanted."""

    tenant: str = ""  # whose turns and whose share it takes; "" where there is nobody to be fair to
    salt: str = ""  # keeps what it puts into the prefix cache from others
    is_streamed: bool = True  # whether tokens are wanted as they come
    deadline: float = math.inf  # until when the answer must be there, on the monotonic clock


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that a text must have: see `service.tasks.constraints`."""

    kind: Literal["choice", "regex", "json_schema", "grammar"]
    text: str  # as it is; of a choice or a schema its JSON


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """Continue each prompt `n` times; choice `index = prompt * n + sample`."""

    prompts: tuple[str | tuple[int, ...], ...]  # texts, or token ids (OpenAI dialect)
    n: int = 1
    echo: bool = False
    logprobs: int | None = None  # None off, 0 the chosen token, k alternatives too
    allow_zero: bool = False  # whether `max_new_tokens` may be 0: the prompt is only scored
    fills_window: bool = False  # new tokens up to the window's end, where `max_new_tokens` is not given
    constraint: Constraint | None = None
    overflow: Overflow = "error"
    parses_special: bool | None = None  # special tokens in a prompt; None: as the service is set
    keeps_last: int | None = None  # tokens of a prompt, without those put around it; None: all
    adds_special: bool = True  # the tokenizer's own special tokens around a prompt that is a text
    sampling: SamplingFields = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """Say the next turn of a conversation, `n` times."""

    messages: tuple[Mapping[str, str], ...]  # `role` and `content`, oldest first
    n: int = 1
    logprobs: int | None = None  # as of `GenerateCall`
    constraint: Constraint | None = None
    overflow: Literal["error", "drop_oldest"] = "error"
    sampling: SamplingFields = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class SummarizeCall:
    """Summarise a text of any length."""

    text: str
    strategy: Strategy = "auto"
    overflow: Overflow = "error"  # truncate_left concerns strategy "single" only: the others fit any text
    sampling: SamplingFields = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class QaCall:
    """Answer a question from a context of any length."""

    question: str
    context: str
    num_answers: int = 1
    no_answer: bool = True
    grounded: bool = True
    overflow: Overflow = "error"  # contexts are windowed, so only a question can be too long; it is never cut
    sampling: SamplingFields = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class TaskCall:
    """Run any task of the manifest. Options that its kind does not have must stay `None`."""

    name: str
    fields: Mapping[str, str]
    n: int | None = None  # generate
    echo: bool | None = None  # generate
    logprobs: int | None = None  # generate
    constraint: Constraint | None = None  # generate
    strategy: Strategy | None = None  # summarize
    num_answers: int | None = None  # qa
    no_answer: bool | None = None  # qa
    grounded: bool | None = None  # qa
    overflow: Overflow = "error"
    sampling: SamplingFields = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)

    def as_generate(self) -> GenerateCall:
        """The same call for a task of kind generate; its prompt is rendered from the fields."""
        return GenerateCall(
            prompts=("",),
            n=1 if self.n is None else self.n,
            echo=bool(self.echo),
            logprobs=self.logprobs,
            constraint=self.constraint,
            overflow=self.overflow,
            sampling=self.sampling,
            origin=self.origin,
        )

    def as_summarize(self) -> SummarizeCall:
        """The same call for a task of kind summarize."""
        strategy = self.strategy or "auto"
        return SummarizeCall(self.fields["text"], strategy, self.overflow, self.sampling, self.origin)

    def as_qa(self) -> QaCall:
        """The same call for a task of kind qa."""
        return QaCall(
            question=self.fields["question"],
            context=self.fields["context"],
            num_answers=1 if self.num_answers is None else self.num_answers,
            no_answer=self.no_answer is not False,
            grounded=self.grounded is not False,
            overflow=self.overflow,
            sampling=self.sampling,
            origin=self.origin,
        )


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model and the settings allow."""

    n_positions: int  # prompt + new tokens of one sequence, at most
    max_job_sequences: int = 256  # sequences a request may submit at once; reduce steps are not counted
    parses_special: bool = True  # special tokens in prompts that a caller writes as a whole
    max_beams: int = 16  # of one search: as many sequences of one job may run at a time


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all sequences of the job, reduce steps and scored candidates included."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens taken from the prefix cache
    dropped_tokens: int  # cut by `overflow: truncate_left`


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of wall time; the first three are parts of the total: until the first sequence started,
    until its first token, and the rest.
    """

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of a choice with its log probability under the raw distribution."""

    token_id: int
    text: str  # U+FFFD where the token holds part of a character only
    offset: int  # code points from the start of the choice's text
    logprob: float | None  # None: the first token of a prompt, which nothing predicts
    top: tuple[tuple[str, float], ...] = ()  # the strongest alternatives, best first
    piece: bytes = b""  # what the token adds to the text
    top_ids: tuple[int, ...] = ()  # of the alternatives


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation."""

    index: int
    text: str
    finish_reason: str  # stop | length
    logprobs: Iterable[TokenScore] | None = None  # made anew each time they are read
    score: float | None = None  # of a text that a beam search found, best first


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """Answer to a `GenerateCall`, choices by index."""

    seed: int
    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings
    dropped_messages: int = 0  # of a conversation, by `overflow: drop_oldest`
    num_samples: int = 1  # sequences that each prompt was computed for, and counted


@dataclass(frozen=True, slots=True)
class ChunkSummary:
    """`text[start:end]` (code points) and its summary. The chunks of a result tile the text."""

    start: int
    end: int
    summary: str


@dataclass(frozen=True, slots=True)
class ScoredSummary:
    """A summary that a beam search found."""

    summary: str
    score: float
    finish_reason: str


@dataclass(frozen=True, slots=True)
class SummarizeResult:
    """Answer to a `SummarizeCall`."""

    seed: int
    summary: str
    finish_reason: str  # of the sequence that wrote the summary
    chunks: tuple[ChunkSummary, ...]
    usage: Usage
    timings: Timings
    summaries: tuple[ScoredSummary, ...] = ()  # of a beam search: the best, which is `summary`, and the next


@dataclass(frozen=True, slots=True)
class QaAnswer:
    """A candidate. `context[start:end] == answer` where offsets are given."""

    answer: str  # "" for no answer
    start: int | None
    end: int | None
    score: float  # log p(answer, end) - log p(no answer, end), in the window where it is highest


@dataclass(frozen=True, slots=True)
class QaResult:
    """Answer to a `QaCall`: distinct answers, best first, never empty.

    No answer comes first when it wins, with the (negative) score of the best candidate, so that a threshold
    can be tuned on the score alone.
    """

    seed: int
    answers: tuple[QaAnswer, ...]
    num_windows: int
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """Answer of a task of kind `choice`."""

    seed: int
    label: str
    scores: Mapping[str, float]  # in the task's order; they sum to 1
    usage: Usage
    timings: Timings


Result = GenerateResult | SummarizeResult | QaResult | ChoiceResult
