"""The words of the engine: what is asked for, the state while it is computed, what comes back.

Plain data without behaviour worth a test of its own. Nothing here knows tensors, threads or HTTP.
"""

from __future__ import annotations

import collections.abc
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.detokenizer import Detokenizer
from service.engine.draw_memo import DraftHistory, DrawMemo


class FinishReason(StrEnum):
    """Why a sequence ended: end of text or a stop string, no room left, the client left, or a fault."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Status(Enum):
    """Where a sequence stands. A preempted sequence is waiting again."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(frozen=True, slots=True, eq=False)
class TokenMask:
    """A set of tokens where it may hold most of them: one bit for each, the lowest of each byte first."""

    bits: NDArray[np.uint8]


class AllowedNext(Protocol):
    """A constraint on the next token, as a pure function of the tokens generated so far."""

    def __call__(
        self, output_ids: collections.abc.Sequence[int]
    ) -> collections.abc.Sequence[int] | TokenMask:
        """Return the ids allowed next; the end-of-text id among them means the text may end here."""
        ...


class ForcedNext(Protocol):
    """What a constraint leaves no choice about, so that it need not be drawn one by one."""

    def __call__(self, output_ids: collections.abc.Sequence[int]) -> list[int]:
        """Return the ids that must follow, as far as they are known; none where several may come next."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is decoded, by the fields of `model_store.sampling`; ranges are checked before."""

    max_new_tokens: int = 16  # 0 scores the prompt and generates nothing
    min_new_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    num_beams: int = 1  # above 1: a beam search, where nothing is drawn; it counts as so many sequences
    num_return_sequences: int = 1  # of its best texts
    length_penalty: float = 1.0
    early_stopping: bool | str = False  # or "never"
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True  # in the text; they are generated all the same
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # 0: of the chosen token; k: of k alternatives too. Raw, before processors
    score_from: int | None = None  # also give log p of the prompt tokens from this position on
    allowed_next: AllowedNext | None = None
    forced_next: ForcedNext | None = None  # of the same constraint

    def kind_of_draw(self) -> str:
        """What decides how long it takes to draw a token: rows of one kind cost about the same."""
        is_drawn = self.temperature > 0 and self.num_beams == 1
        words = ["drawn"] if is_drawn else ["greedy"] if self.num_beams == 1 else [f"{self.num_beams} beams"]
        if is_drawn and self.top_k:
            words.append(f"top_k<{1 << self.top_k.bit_length()}")
        if is_drawn and self.top_p < 1:
            words.append("top_p")
        if self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty:
            words.append("penalised")
        if self.no_repeat_ngram_size:
            words.append("no_repeat_ngram")
        if self.min_new_tokens:
            words.append("held_open")
        if self.logit_bias:
            words.append("biased")
        if self.allowed_next is not None:
            words.append("constrained")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence to generate. Its draws are Philox(seed, ordinal, output position)."""

    prompt_ids: tuple[int, ...]  # at least one
    params: SamplingParams
    ordinal: int = 0
    is_streamed: bool = True  # tokens are wanted as they come; else one output at the end has everything

    def __post_init__(self) -> None:
        """Refuse what could never be computed.

        Raises:
            ValueError: there is no prompt to predict from, or nothing to search for.
        """
        if not self.prompt_ids:
            raise ValueError("prompt_ids is empty; an empty prompt is the end-of-text token")
        if self.params.num_beams > 1 and self.params.max_new_tokens == 0:
            raise ValueError("num_beams is above 1 where max_new_tokens is 0; nothing is searched for there")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of a token and of its strongest alternatives, from the raw distribution."""

    token_id: int
    logprob: float | None  # None for the first token of a prompt, which nothing predicts
    top: collections.abc.Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class SequenceStats:
    """Final account of a sequence; times in seconds."""

    key: str  # what stands for the API key it came with, "" without one
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    queue_s: float
    prefill_s: float


@dataclass(slots=True)  # not frozen, which takes four times as long: there is one for each token
class SequenceOutput:
    """What is new of one sequence; nobody changes it. The one with a finish_reason is the last."""

    index: int  # of the sequence within its job
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str = ""
    stats: SequenceStats | None = None
    score: float | None = None  # of a beam search's best text
    others: tuple[SequenceOutput, ...] = ()  # its next best, as far as they are wanted


@dataclass(eq=False, slots=True)
class Job:
    """What the sequences of one request have in common: a turn in the queue, a share, a cancel. Once it is
    submitted, the engine thread owns it.
    """

    tenant: str = ""  # whose turn it is, when keys compete; "" where there is nobody to be fair to
    salt: str = ""  # separates prefix caches of different API keys
    num_running: int = 0


@dataclass(slots=True)
class Unsent:
    """What a sequence said and nobody was told yet."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def take(self) -> tuple[str, tuple[int, ...], tuple[TokenLogprob, ...]]:
        """Everything since the last time."""
        taken = self.text, tuple(self.token_ids), tuple(self.logprobs)
        self.text = ""
        self.token_ids.clear()
        self.logprobs.clear()
        return taken


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens and state of one sequence inside the engine. Owned by the engine thread once added."""

    job: Job
    index: int
    request: SequenceRequest
    arrived_at: float  # seconds on the engine's clock
    status: Status = Status.WAITING
    params: SamplingParams = field(init=False)  # the request's
    token_ids: list[int] = field(init=False)  # prompt and output
    kind_of_draw: str = field(init=False)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    # its text: `Engine` fills and reads it
    detokenizer: Detokenizer = field(init=False)
    end_ids: frozenset[int] = frozenset()  # a token of these is its last
    unsent: Unsent = field(default_factory=Unsent)
    # its blocks: `Scheduler` and `PrefixCache`
    block_table: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0  # tokens whose K and V are in the cache
    block_keys: list[bytes] = field(default_factory=list)  # content keys of the full blocks, as far as known
    num_registered_blocks: int = 0  # full blocks that others can find
    promised_keys: set[bytes] = field(default_factory=set)  # of blocks that others wait for it to compute
    num_preemptions: int = 0
    last_turn: int = 0  # number of its last turn where there was not time for everybody: `TimeShare`
    draw_memo: DrawMemo = field(default_factory=DrawMemo)  # the sampler's
    followers: list[Sequence] = field(default_factory=list)  # the other beams of its search: `Beams`
    leader: Sequence | None = None  # of such a beam: the sequence that was asked for
    # its drafts: `Speculator`
    drafts: DraftHistory = field(default_factory=DraftHistory)
    # its account: `Reporter`; seconds on the engine's clock
    num_cached_tokens: int = 0  # how many computed tokens it found when it first started
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    def __post_init__(self) -> None:
        """Start from a copy of the prompt: the list grows with every token."""
        self.params = self.request.params
        self.token_ids = list(self.request.prompt_ids)
        self.kind_of_draw = self.params.kind_of_draw()

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens given by the client."""
        return len(self.request.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def output_ids(self) -> list[int]:
        """Tokens generated so far."""
        return self.token_ids[len(self.request.prompt_ids) :]

    @property
    def next_scored(self) -> int | None:
        """Position of the next prompt token whose log probability is wanted; None when none is."""
        if self.params.score_from is None:
            return None
        position = self.params.score_from + len(self.prompt_logprobs)
        return position if position < self.num_prompt_tokens else None

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose K and V are still to be computed; 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the newest token is missing from the cache."""
        return self.num_uncomputed_tokens > 1
