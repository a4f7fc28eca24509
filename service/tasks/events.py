"""What a running task reports, in order: `Plan`, then `Token` and `Chunk`, and exactly one `Done` at the end.

Streaming and non-streaming routes consume the same events, which is why their texts are equal. Failures are
exceptions of `service.errors`, not events.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.tasks.calls import Result, TokenScore


@dataclass(frozen=True, slots=True)
class Plan:
    """How a document will be read: first event of kinds summarize and qa."""

    strategy: str  # single | map_reduce | windows
    num_chunks: int


@dataclass(slots=True)  # not frozen, which takes four times as long; nobody changes it all the same
class Token:
    """New text of a choice. `text` may be empty when only `logprobs` or `finish_reason` are new."""

    index: int
    text: str
    logprobs: tuple[TokenScore, ...] = ()
    finish_reason: str | None = None  # with the last event of the index
    num_tokens: int = 0  # of the choice so far, where the task counts them
    num_prompt_tokens: int = 0
    is_followed: bool = False  # by another event at once: the two can be written together


@dataclass(frozen=True, slots=True)
class Chunk:
    """The summary of `text[start:end]` is complete. Chunks come as they finish, not by index."""

    index: int
    start: int
    end: int
    summary: str


@dataclass(frozen=True, slots=True)
class Done:
    """The last event: everything a non-streaming reply holds."""

    result: Result


Event = Plan | Token | Chunk | Done
