"""Texts to token ids in steps, the same ids as at once: what `Tokenizer.encode` and `Task.encode` give.

A large text is cut where the tokens of the parts are those of the whole. `encode` pauses between its parts;
who encodes several texts pauses between those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from model_store.evidence import Evidence
from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer

SLICE = 8192  # code points tokenised at once: a few milliseconds, and as long the interpreter lock is held
_NEAR = 32  # code points on each side of a cut that must show that it changes nothing
_MAX_TRIES = 8
_WORD = re.compile(r"[^\W_]+")
_LONGEST_WORD = 65536  # code points without any place to cut, which is no text: it is cut anywhere


def encode(tokenizer: Tokenizer, text: str, parses_special: bool = False) -> Steps[list[int]]:
    """Give the ids of a user's text.

    Args:
        tokenizer: the model's.
        text: of any length.
        parses_special: whether special tokens in it are recognised.

    Returns:
        What `tokenizer.encode` gives, or `encode_specials`, but for texts with a word of more than 64 K
        characters, which is cut.
    """
    encode_part = tokenizer.encode_specials if parses_special else tokenizer.encode
    if len(text) <= SLICE:
        return encode_part(text)
    ids: list[int] = []
    for start, end in _parts(tokenizer, text, parses_special):
        if start:
            yield
        ids += encode_part(text[start:end])
    return ids


def render(task: Task, tokenizer: Tokenizer, fields: Mapping[str, str]) -> Steps[list[int]]:
    """Give the ids of a task's prompt: what `task.encode` gives."""
    if task.evidence and task.document:
        evidence = yield from read(task, fields)
        return (yield from render_read(task, tokenizer, fields, evidence))
    return (yield from _render(task, tokenizer, fields))


def render_read(
    task: Task, tokenizer: Tokenizer, fields: Mapping[str, str], evidence: Evidence
) -> Steps[list[int]]:
    """Give the ids of a task's prompt whose document has been read already."""
    fields = {**fields, task.document or "": evidence.text}
    return (yield from _render(replace(task, evidence=0, extractive=False), tokenizer, fields))


def read(task: Task, fields: Mapping[str, str]) -> Steps[Evidence]:
    """Give what of the document the prompt holds: what `task.read` gives."""
    return (yield from task.read_in_steps(fields))


def has_more_tokens(tokenizer: Tokenizer, text: str, max_tokens: int) -> Steps[bool]:
    """Say whether a text has, beyond doubt, more than `max_tokens` tokens, having read but its beginning.

    Texts of hardly more than `max_tokens` are given the benefit: to cut a text may add tokens to it.
    """
    count = 0
    for start in range(0, len(text) if len(text) > SLICE else 0, SLICE):
        count += len(tokenizer.encode(text[start : start + SLICE]))
        if count > 2 * max_tokens:
            return True
        yield
    return False


def drop_tokens(tokenizer: Tokenizer, text: str, count: int) -> Steps[str]:
    """Cut about `count` tokens, at least one character, from a text's start; "" when it has no more."""
    for start, end in _parts(tokenizer, text):
        _, offsets = tokenizer.encode_with_offsets(text[start:end])
        if count < len(offsets):
            return text[max(start + offsets[count][0], 1) :]
        count -= len(offsets)
        yield
    return ""


def _render(task: Task, tokenizer: Tokenizer, fields: Mapping[str, str]) -> Steps[list[int]]:
    ids = list(tokenizer.bos_ids)
    for text, is_user_text in task.segments(fields):
        ids += (yield from encode(tokenizer, text)) if is_user_text else tokenizer.encode_specials(text)
        yield
    return ids


def _parts(tokenizer: Tokenizer, text: str, parses_special: bool = False) -> Iterator[tuple[int, int]]:
    """Parts of a text, in order, whose tokens put together are the text's."""
    start = 0
    while start < len(text):
        end = _part_end(tokenizer, text, start, parses_special)
        yield start, end
        start = end


def _part_end(tokenizer: Tokenizer, text: str, start: int, parses_special: bool) -> int:
    """Where a part may end: behind a word, since there tokenizers part texts themselves."""
    encode_part = tokenizer.encode_specials if parses_special else tokenizer.encode
    near = max(_NEAR, tokenizer.longest_special) if parses_special else _NEAR
    for wanted in range(start + SLICE, min(start + _LONGEST_WORD, len(text)), SLICE // 2):
        low = wanted - SLICE // 2
        ends = [low + match.end() for match in _WORD.finditer(text[low : wanted + 1])]
        for end in [end for end in reversed(ends) if end <= wanted][:_MAX_TRIES]:
            before, after = text[max(end - near, 0) : end], text[end : end + near]
            if encode_part(before + after) == encode_part(before) + encode_part(after):
                return end
    return min(start + _LONGEST_WORD, len(text))
