"""Makes a prompt and its new tokens fit the model's window, or says the largest number that does.

One sequence per prompt here; documents that become many windows are `chunking`'s. A text far too
long is refused by its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from model_store.errors import InvalidFields, InvalidText
from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer, check_text
from service.errors import InvalidRequest, PromptTooLong
from service.tasks.calls import Overflow
from service.tasks.rendering import SLICE, drop_tokens, encode, has_more_tokens, render
from service.tasks.sampling import Decoding

_LONGEST_NAME = 64  # of a field that an error names though nobody knows it


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits, with its room."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    num_dropped: int = 0


def check_fields(task: Task, fields: Mapping[str, str]) -> None:
    """Raise `InvalidRequest` unless the fields are exactly the task's, and valid Unicode."""
    takes = f"task {task.name} takes {', '.join(task.fields)}"
    try:
        task.check_fields(fields)
    except InvalidFields as error:
        if error.field in task.fields:
            problem = "is missing" if error.field not in fields else "must be a string"
            raise InvalidRequest(f"{error.field} {problem}; {takes}", error.field) from None
        param = error.field if error.field.isidentifier() and len(error.field) <= _LONGEST_NAME else None
        raise InvalidRequest(f"a field is unknown; {takes} and the sampling fields", param) from None
    for name, text in fields.items():
        check_unicode(name, text)


def check_unicode(name: str, text: str) -> None:
    """Raise `InvalidRequest` when a text holds lone surrogates, which no UTF-8 has."""
    try:
        check_text(text)
    except InvalidText as error:
        raise InvalidRequest(f"{name}: {error}", name) from None


def check_not_blank(name: str, text: str) -> None:
    """Raise `InvalidRequest` when a text has nothing to read."""
    if not text.strip():
        raise InvalidRequest(f"{name} must hold more than white space", name)


def num_dropped(num_prompt: int, decoding: Decoding, n_positions: int, overflow: Overflow, param: str) -> int:
    """Say how many tokens of a prompt must go.

    Args:
        num_prompt: tokens of the whole prompt, at least 1.
        decoding: how many new tokens are wanted, and whether by default.
        n_positions: the model's window.
        overflow: whether anything may go.
        param: the field that holds the prompt, for the error.

    Returns:
        0 when the prompt fits: with all new tokens if they were asked for, else with at least one.

    Raises:
        PromptTooLong: it does not fit and nothing may go; names the largest `max_new_tokens` that fits.
        InvalidRequest: no prompt at all would fit beside that many new tokens.
    """
    wanted = decoding.max_new_tokens if decoding.is_explicit else 1
    excess = num_prompt + wanted - n_positions
    if excess <= 0:
        return 0
    if wanted >= n_positions and overflow == "truncate_left":
        raise InvalidRequest(f"max_new_tokens must be at most {n_positions - 1}", "max_new_tokens")
    if overflow == "truncate_left":
        return excess
    raise _too_long(num_prompt, wanted, n_positions, param)


def _too_long(num_prompt: int, wanted: int, n_positions: int, param: str) -> PromptTooLong:
    room = n_positions - num_prompt
    if room < 1:
        legal = f"at most {n_positions - 1} leave room for an answer"
        return PromptTooLong(f"{param} makes a prompt of {num_prompt} tokens; {legal}", param)
    reason = f"beside this prompt of {num_prompt} tokens in a window of {n_positions}"
    return PromptTooLong(f"max_new_tokens must be at most {room} {reason}, not {wanted}", "max_new_tokens")


def fit_ids(
    ids: list[int],
    decoding: Decoding,
    n_positions: int,
    overflow: Overflow,
    param: str = "prompt",
    frame_ids: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
) -> Fitted:
    """Fit a prompt of bare ids; tokens are dropped at its start, but within the frame."""
    before, after = frame_ids
    total = len(before) + len(ids) + len(after)
    dropped = num_dropped(total, decoding, n_positions, overflow, param)
    room = n_positions - (total - dropped)
    return Fitted((*before, *ids[dropped:], *after), min(decoding.max_new_tokens, room), dropped)


def fit_text(
    tokenizer: Tokenizer,
    text: str,
    decoding: Decoding,
    n_positions: int,
    overflow: Overflow,
    param: str,
    parses_special: bool = False,
    adds_special: bool = True,
    keeps_last: int | None = None,
) -> Steps[Fitted]:
    """Fit a prompt that is a user's text; an empty one is the beginning of text, or its end.

    Args:
        tokenizer: the model's.
        text: the prompt.
        decoding: how many new tokens are wanted.
        n_positions: the model's window.
        overflow: whether the prompt's beginning may go.
        param: the field that holds it, for errors.
        parses_special: whether special tokens in it are recognised.
        adds_special: whether the tokenizer puts its own special tokens around it, as transformers does.
        keeps_last: so many of its tokens are read, the others are dropped; None: all are read.

    Raises:
        PromptTooLong: it does not fit and nothing may be dropped.
    """
    check_unicode(param, text)
    if overflow == "error" and len(text) > SLICE and keeps_last is None:
        yield from check_can_fit(tokenizer, text, n_positions, param)
    ids = yield from encode(tokenizer, text, parses_special)
    num_left_out = max(len(ids) - keeps_last, 0) if keeps_last is not None else 0
    ids = ids[num_left_out:]
    frame = tokenizer.frame_ids if adds_special else ((), ())
    if not ids and not any(frame):
        ids = [tokenizer.eos_id]
    fitted = fit_ids(ids, decoding, n_positions, overflow, param, frame)
    return replace(fitted, num_dropped=fitted.num_dropped + num_left_out)


def check_can_fit(tokenizer: Tokenizer, text: str, n_positions: int, param: str) -> Steps[None]:
    """Raise `PromptTooLong` for a text far beyond the window, having tokenised but its beginning."""
    if (yield from has_more_tokens(tokenizer, text, n_positions)):
        legal = f"at most {n_positions - 1} leave room for an answer"
        raise PromptTooLong(f"{param} makes a prompt of more than {n_positions} tokens; {legal}", param)


def fit_fields(
    task: Task,
    tokenizer: Tokenizer,
    fields: Mapping[str, str],
    decoding: Decoding,
    n_positions: int,
    overflow: Overflow,
) -> Steps[Fitted]:
    """Fit a task's prompt; the document field loses its start, the template nothing.

    Returns:
        The ids of the whole template with what is left of the document.

    Raises:
        PromptTooLong: it does not fit, and nothing may be dropped or the document is not what is too long.
    """
    param = task.document or task.fields[-1]
    is_cut = overflow == "truncate_left" or task.evidence > 0
    for name in task.fields:
        if name != task.document or not is_cut:  # its text stands in the prompt as it is
            yield from check_can_fit(tokenizer, fields[name], n_positions, param)
    ids = (yield from render(task, tokenizer, fields)) or [tokenizer.eos_id]
    total = len(ids)
    excess = num_dropped(total, decoding, n_positions, overflow if task.document else "error", param)
    kept = dict(fields)
    while excess and task.document:
        shorter = yield from drop_tokens(tokenizer, kept[task.document], excess)
        if len(shorter) == len(kept[task.document]):
            num_dropped(len(ids), decoding, n_positions, "error", param)
        kept[task.document] = shorter
        ids = (yield from render(task, tokenizer, kept)) or [tokenizer.eos_id]
        excess = num_dropped(len(ids), decoding, n_positions, overflow, param)
    room = n_positions - len(ids)
    return Fitted(tuple(ids), min(decoding.max_new_tokens, room), total - len(ids))
