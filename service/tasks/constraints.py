"""Texts of a given form: regular expressions, JSON schemas, grammars and choices, by llguidance.

A constraint is compiled once, in a thread of its own, and kept for others that ask for the same. Every
sequence then follows it with a copy of its own (`Follower`), which is the engine's `AllowedNext`. llguidance
works on bytes, and so do we: each token is told to it as the bytes that it writes.
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
from numpy.typing import NDArray

from model_store.borders import is_cjk
from model_store.steps import Steps
from model_store.tokenizer import Tokenizer
from service.engine.detokenizer import last_of_text
from service.engine.sequence import TokenMask
from service.errors import InvalidRequest
from service.tasks.calls import ChatCall, Constraint, GenerateCall, Origin, SamplingFields
from service.tasks.json_schemas import STYLE, to_follow
from service.tasks.offload import LARGE_TEXT_BYTES, Offloader
from service.tasks.sampling import check_neutral

MAX_CHARS = 64 * 1024  # of a constraint's text
MAX_CACHED = 64  # compiled constraints that are kept
MAX_SHORT_TEXTS, _SHORT_CHARS = 4096, 64  # forced texts whose ids are kept
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


class Words:
    """A tokenizer's tokens as llguidance is told of them, each as what it writes behind a word.

    Some tokenizers imply spaces, so that a token writes something else at the start of a text or behind a
    Chinese character. There such a token is not allowed: the text would not be what llguidance took it for.

    Args:
        tokenizer: the model's. Cost: one pass over the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ids = range(tokenizer.vocab_size)
        alone = [tokenizer.piece(None, token_id) for token_id in ids]
        word = next((token_id for token_id in ids if alone[token_id].isalpha()), None)
        behind_word = [tokenizer.piece(word, token_id) for token_id in ids]
        self._otherwise_first = _bits([a != b for a, b in zip(alone, behind_word, strict=True)])
        self._implies_spaces = bool(self._otherwise_first.any())
        cjk = next((token_id for token_id in ids if _ends_with_cjk(alone[token_id])), None)
        behind_cjk = [tokenizer.piece(cjk, token_id) for token_id in ids]
        self._otherwise_behind_cjk = _bits([a != b for a, b in zip(behind_cjk, behind_word, strict=True)])
        self.ends = _bits([token_id in tokenizer.eos_token_ids for token_id in ids])
        specials = [token_id for token_id in ids if tokenizer.is_special(token_id)]
        names = {token_id: f"<|{token_id}|>".encode() for token_id in (*specials, *tokenizer.eos_token_ids)}
        # what llguidance's wrapper reads
        self.tokens = [names.get(token_id, behind_word[token_id]) for token_id in ids]
        self.special_token_ids = sorted(names)
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, None
        self._ids_of: dict[str, list[int]] = {}  # what is forced is mostly a key of a schema, again and again
        self.backend = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(self),
            n_vocab=tokenizer.vocab_size,
            eos_token=list(tokenizer.eos_token_ids),
        )

    def __call__(self, text: str) -> list[int]:
        """Give the ids of a text within another, for llguidance, which forces them where only one text can
        follow. A tokenizer that implies spaces would write one before it.
        """
        ids = self._ids_of.get(text)
        if ids is None:
            encode = self.backend.greedy_tokenize if self._implies_spaces else self.tokenizer.encode
            ids = encode(text)
            if len(text) <= _SHORT_CHARS and len(self._ids_of) < MAX_SHORT_TEXTS:
                self._ids_of[text] = ids
        return ids

    def otherwise(self, previous_id: int | None) -> NDArray[np.uint8] | None:
        """Bits of the tokens that write something else than llguidance was told behind this one."""
        if not self._implies_spaces:
            return None
        if previous_id is None:
            return self._otherwise_first
        is_behind_cjk = _ends_with_cjk(self.tokenizer.piece(None, previous_id))
        return self._otherwise_behind_cjk if is_behind_cjk else None


def _bits(flags: Sequence[bool]) -> NDArray[np.uint8]:
    """Flags as whole words of 32 bits, lowest bit first."""
    padded = np.zeros(-(-len(flags) // 32) * 32, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little")


def _ends_with_cjk(piece: bytes) -> bool:
    text = piece.decode(errors="replace")
    return bool(text) and is_cjk(text[-1])


class Follower:
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

    def __call__(self, output_ids: Sequence[int]) -> TokenMask:
        """Give the tokens allowed behind `output_ids`; only an end where these are not allowed themselves or
        nothing can follow them.
        """
        words, dead_end = self._words, _NO_TOKEN
        mask = words.ends
        if self._go_to([*output_ids]):
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8, words.ends.nbytes)
            otherwise = words.otherwise(self._ids[-1] if self._ids else self._before)
            if otherwise is not None:
                mask = mask & ~otherwise
            may_end = (mask & words.ends).any()  # so says llguidance also where no token is left
            if self._matcher.is_accepting() if may_end else mask.any():
                dead_end = ""
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            dead_end = _NO_TOKEN if reason.startswith("NoExtensionBias") else reason
        self._dead_ends.pop(len(output_ids), None)  # a draft's that was not accepted
        if dead_end:
            self._dead_ends[len(output_ids)] = dead_end
        return TokenMask(words.ends if dead_end else mask)

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
        shared = len(self._ids)
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

    def follow(self, prompt_ids: Sequence[int]) -> Follower:
        """Begin a text behind a prompt."""
        return Follower(self._matcher, self._words, prompt_ids)


class Grammars:
    """Compiles constraints and keeps the latest.

    Args:
        tokenizer: the model's.
        offloader: in whose turns a constraint waits to be compiled.
    """

    def __init__(self, tokenizer: Tokenizer, offloader: Offloader) -> None:
        self._tokenizer, self._offloader = tokenizer, offloader
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
        found = self._compiled.get(constraint)
        if found is None:
            size = max(len(constraint.text), LARGE_TEXT_BYTES + 1)  # not on the event loop, however short
            found = await self._offloader.run(size, self._compile(constraint), origin)
        self._compiled[constraint] = found
        self._compiled.move_to_end(constraint)
        while len(self._compiled) > MAX_CACHED:
            self._compiled.popitem(last=False)
        return found

    def _compile(self, constraint: Constraint) -> Steps[Grammar]:
        words = self._words
        yield
        compiled = self._thread.submit(_matcher, constraint, words)
        try:
            while not compiled.done():
                wait([compiled], _LOOK_S)
                yield
        finally:
            compiled.cancel()  # nobody waits for it any more, if it has not begun
        return Grammar(compiled.result(), words)

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

    @cached_property
    def _words(self) -> Words:
        return Words(self._tokenizer)


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
