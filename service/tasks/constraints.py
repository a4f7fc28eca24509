"""Texts of a given form: regular expressions, JSON schemas, grammars and choices, by llguidance.

A constraint is compiled once, in a thread of its own, and kept for others that ask for the same. Every
sequence then has a copy of its own (`Guide`), which is the engine's `AllowedNext`.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property

import llguidance
import numpy as np

from model_store.steps import Steps
from model_store.tokenizer import Tokenizer
from service.engine.detokenizer import last_of_text
from service.engine.sequence import TokenMask
from service.errors import InvalidRequest
from service.tasks.calls import ChatCall, Constraint, GenerateCall, Origin, SamplingFields
from service.tasks.json_schemas import STYLE, to_follow
from service.tasks.offload import LARGE_TEXT_BYTES, Offloader
from service.tasks.sampling import check_neutral
from service.tasks.words import Words

MAX_CHARS = 64 * 1024  # of a constraint's text
MAX_CACHED = 64  # compiled constraints that are kept
_MAX_REASON_CHARS = 300
# llguidance's advice names an option of its own
_ADVICE = (
    "Enable 'coerce_one_of' option to approximate oneOf with anyOf",
    "Use anyOf where forms may overlap",
)
_NO_TOKEN = "the tokenizer has no token that could come next"
# What it may cost: some 100 ms to compile, some 20 ms for a step, some tens of megabytes for a sequence.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=25_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# llguidance goes down by some calls for each rule that stands in another, and the process ends where its
# stack does: 8 MB are too few for 3,700 rules, half of this is enough for the 8,000 that fit into MAX_CHARS.
# What is not used costs nothing.
_STACK_BYTES = 256 << 20
_LOOK_S = 0.005  # between looks whether a constraint is ready


class Guide:
    """Which tokens may come next in one sequence: an `AllowedNext`.

    It remembers how far it has come, and goes back where it is asked about an earlier place (a draft that was
    not accepted); the answers depend on the ids alone.

    Args:
        start: a matcher at the start, of which a copy is taken.
        words: the tokens.
        prompt_ids: what the text goes on from.
    """

    def __init__(self, start: llguidance.LLMatcher, words: Words, prompt_ids: Sequence[int]) -> None:
        self._start, self._matcher, self._words = start, start.deep_copy(), words
        self._dead_ends: dict[int, str] = {}  # why nothing can follow, by the number of tokens before
        self._before = last_of_text(words.tokenizer, prompt_ids)
        self._ids: list[int] = []  # those that the matcher has taken
        self._forced: list[int] | None = None  # what alone can follow them; None where it was not asked

    def __call__(self, output_ids: Sequence[int]) -> TokenMask | list[int]:
        """Give the tokens allowed behind `output_ids`; only an end where these are not allowed themselves or
        nothing can follow them.
        """
        ids, words, dead_end = [*output_ids], self._words, _NO_TOKEN
        self._dead_ends.pop(len(ids), None)  # a draft's that was not accepted
        if forced := self._forced_behind(ids):
            return forced[:1]
        mask = words.ends
        if self._go_to(ids):
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8, words.ends.nbytes)
            otherwise = words.otherwise(self._last_id)
            if otherwise is not None:
                mask = mask & ~otherwise
            may_end = (mask & words.ends).any()  # so says llguidance also where no token is left
            if self._matcher.is_accepting() if may_end else mask.any():
                dead_end = ""
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            dead_end = _NO_TOKEN if reason.startswith("NoExtensionBias") else reason
        if dead_end:
            self._dead_ends[len(ids)] = dead_end
        return TokenMask(words.ends if dead_end else mask)

    def forced(self, output_ids: Sequence[int]) -> list[int]:
        """Give the tokens that alone can follow `output_ids`, one behind the other."""
        return self._forced_behind([*output_ids])

    def _forced_behind(self, ids: list[int]) -> list[int]:
        num_taken = len(self._ids)
        ahead = ids[num_taken:]
        if self._forced is None or ids[:num_taken] != self._ids or ahead != self._forced[: len(ahead)]:
            if not self._go_to(ids):
                return []
            ahead, self._forced = [], self._words.kept(self._last_id, self._matcher.compute_ff_tokens())
        return self._forced[len(ahead) :]

    @property
    def _last_id(self) -> int | None:
        return self._ids[-1] if self._ids else self._before

    def check(self, num_tokens: int | None) -> None:
        """Raise `InvalidRequest` for a text that ended because the constraint could not be followed.

        Args:
            num_tokens: of the text, its end too; None for several that were followed side by side.
        """
        for place, reason in self._dead_ends.items():
            if num_tokens in (None, place + 1):
                text = f"constraint cannot be followed to an end here: {reason}"
                raise InvalidRequest(text, "constraint")

    def _go_to(self, ids: list[int]) -> bool:
        """Bring the matcher behind `ids`; false if they are not allowed."""
        if self._matcher.is_error():  # from which nothing leads back
            self._matcher, self._ids = self._start.deep_copy(), []
        if ids == self._ids:
            return True
        shared, self._forced = len(self._ids), None
        if self._ids != ids[:shared]:
            pairs = enumerate(zip(self._ids, ids, strict=False))
            shared = next((at for at, (old, new) in pairs if old != new), min(len(self._ids), len(ids)))
            self._matcher.rollback(len(self._ids) - shared)
        taken = self._matcher.try_consume_tokens(ids[shared:]) if len(ids) > shared else 0
        self._ids = ids[: shared + taken]
        return len(self._ids) == len(ids)


class Grammar:
    """A compiled constraint, at its start."""

    def __init__(self, matcher: llguidance.LLMatcher, words: Words) -> None:
        self._matcher, self._words = matcher, words

    def guide(self, prompt_ids: Sequence[int]) -> Guide:
        """Begin a text behind a prompt."""
        return Guide(self._matcher, self._words, prompt_ids)


class Grammars:
    """Compiles constraints and keeps the latest.

    Args:
        tokenizer: the model's. Cost: one pass over its vocabulary, and as much within llguidance, which holds
            the interpreter's lock for it.
        offloader: in whose turns a constraint waits to be compiled.
    """

    def __init__(self, tokenizer: Tokenizer, offloader: Offloader) -> None:
        self._words, self._offloader = Words(tokenizer), offloader
        self._compiled: OrderedDict[Constraint, Grammar] = OrderedDict()  # the latest used is last

    async def compile(self, constraint: Constraint, origin: Origin) -> Grammar:
        """Give a constraint in a form that can be followed.

        Raises:
            InvalidRequest: it is no such constraint, or too large; says llguidance's reason.
            QueueFull: too many wait.
        """
        if len(constraint.text) > MAX_CHARS:
            legal = f"at most {MAX_CHARS} characters"
            raise InvalidRequest(f"constraint must have {legal} of {constraint.kind}", "constraint")
        grammar = self._compiled.get(constraint)
        if grammar is None:
            size = max(len(constraint.text), LARGE_TEXT_BYTES + 1)  # not on the event loop, however short
            grammar = await self._offloader.run(size, self._compile(constraint), origin)
        self._compiled[constraint] = grammar
        self._compiled.move_to_end(constraint)
        while len(self._compiled) > MAX_CACHED:
            self._compiled.popitem(last=False)
        return grammar

    def _compile(self, constraint: Constraint) -> Steps[Grammar]:
        compiled = self._thread.submit(_matcher, constraint, self._words)
        try:
            while not compiled.done():
                wait([compiled], _LOOK_S)
                yield
        finally:
            compiled.cancel()  # nobody waits for it any more, if it has not begun
        return Grammar(compiled.result(), self._words)

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        """One, with a deep stack: what takes long there keeps other constraints waiting, and no text."""
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
            thread.submit(int).result()  # it starts while the stack is deep
        finally:
            threading.stack_size(before)
        return thread


def constrained_sampling(call: GenerateCall | ChatCall) -> SamplingFields:
    """The sampling fields of a call with a constraint, which says where a text ends: the task's own
    stop strings do not apply beside it, only the caller's.

    Raises:
        InvalidRequest: the end of the text is to be ignored.
    """
    check_neutral(call.sampling, ["ignore_eos"], "with constraint")
    return {"stop": (), **call.sampling, "ignore_eos": False}


def _matcher(constraint: Constraint, words: Words) -> llguidance.LLMatcher:
    """Compile a constraint; needs a deep stack.

    Raises:
        InvalidRequest: it cannot be followed.
    """
    try:
        text = _grammar_text(constraint)
    except (ValueError, RecursionError) as error:
        raise _refusal(constraint.kind, str(error)) from None
    matcher = llguidance.LLMatcher(words.backend, text, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise _refusal(constraint.kind, matcher.get_error())
    return matcher


def _grammar_text(constraint: Constraint) -> str:
    """A constraint as llguidance reads it."""
    text: str
    if constraint.kind == "json_schema":
        schema = json.dumps(to_follow(json.loads(constraint.text)))
        text = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=STYLE)
    elif constraint.kind == "choice":
        texts = (json.dumps(text, ensure_ascii=False) for text in json.loads(constraint.text))
        text = llguidance.LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
    else:
        text = llguidance.grammar_from(constraint.kind, constraint.text)
    return text


def _refusal(kind: str, error: str) -> InvalidRequest:
    return InvalidRequest(f"constraint has no {kind} that can be followed: {_reason(error)}", "constraint")


def _reason(error: str) -> str:
    """llguidance's reason without the pictures of the place that it draws below it."""
    lines = error.strip().splitlines() or ["it does not say why"]
    causes = [line for line in lines[1:] if line.startswith("error: ")]
    return " ".join([lines[0], *causes]).replace(*_ADVICE)[:_MAX_REASON_CHARS]
