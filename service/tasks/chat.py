"""Says the next turn of a conversation: messages become one prompt, and what does not fit is dropped whole.

How a model holds a conversation is `model_store.chat`'s concern; what a prompt becomes, `generate`'s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

from model_store.chat import ChatFormat
from model_store.errors import ChatError
from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.job_stream import JobStream
from service.errors import InvalidRequest, PromptTooLong
from service.tasks.calls import ChatCall, GenerateCall, GenerateResult, ModelLimits, SamplingFields
from service.tasks.constraints import Grammar, constrained_sampling
from service.tasks.events import Done, Event, Token
from service.tasks.fitting import check_can_fit, fit_ids
from service.tasks.generate import Generation
from service.tasks.offload import size_of
from service.tasks.rendering import encode
from service.tasks.sampling import Decoding

NO_FORMAT = (
    "the served model has no way to hold a conversation; give it one: a Jinja template in "
    "TEXTGEN_CHAT_TEMPLATE=FILE, a chat_template in its tokenizer_config.json, or a task `chat` with the "
    "field `history` in its manifest"
)

Messages = Sequence[Mapping[str, str]]
_FRAME_BYTES = 32  # of a format around a message


def task_of(chat: ChatFormat, tasks: Mapping[str, Task], limits: ModelLimits) -> Task:
    """The task whose defaults a conversation has: the format's own, else `generate` with all the room."""
    if chat.task is not None:
        return chat.task
    generate = tasks["generate"]
    return replace(generate, sampling={**generate.sampling, "max_new_tokens": limits.n_positions})


def sampling_of(call: ChatCall, task: Task) -> SamplingFields:
    """The call's fields; the task's stop strings end a turn whatever else does, but for a constraint."""
    if call.constraint is not None:
        return constrained_sampling(call)
    stop = (*call.sampling.get("stop", ()), *task.stop)
    return {**call.sampling, "stop": stop} if stop else dict(call.sampling)


class Turn:
    """A conversation that fits, and the model's turns in it.

    Args:
        generation: with the one prompt.
        is_trimmed: whether the space between prompt and answer is the format's, and none of the answer.
        num_dropped: messages that did not fit.
    """

    def __init__(self, generation: Generation, is_trimmed: bool, num_dropped: int) -> None:
        self.requests = generation.requests
        self._generation, self._is_trimmed, self._num_dropped = generation, is_trimmed, num_dropped

    async def events(self, job: JobStream) -> AsyncGenerator[Event]:
        """Yield what `Generation.events` yields."""
        begun: set[int] = set()
        async for event in self._generation.events(job):
            if self._is_trimmed and isinstance(event, Token) and event.index not in begun:
                event = replace(event, text=event.text.lstrip())
                if event.text:
                    begun.add(event.index)
            elif isinstance(event, Done):
                event = self._done(event)
            yield event

    def _done(self, event: Done) -> Done:
        assert isinstance(event.result, GenerateResult), "a turn is generated"
        choices = event.result.choices
        if self._is_trimmed:
            choices = tuple(replace(choice, text=choice.text.lstrip()) for choice in choices)
        return Done(replace(event.result, choices=choices, dropped_messages=self._num_dropped))


def plan(
    call: ChatCall,
    chat: ChatFormat,
    tokenizer: Tokenizer,
    decoding: Decoding,
    limits: ModelLimits,
    grammar: Grammar | None = None,
) -> Steps[Turn]:
    """Render a conversation.

    Raises:
        PromptTooLong: it does not fit, and nothing may be dropped or the last turn alone is too long.
        InvalidRequest: the model's format has no place for these messages.
    """
    num_dropped, is_strict = 0, call.overflow == "error"
    try:
        if is_strict:
            text = "\n".join(message["content"] for message in call.messages)
            yield from check_can_fit(tokenizer, text, limits.n_positions, "messages")
            ids = yield from render(call.messages, chat, tokenizer)
        else:
            ids, num_dropped = yield from _fitting(call.messages, chat, tokenizer, decoding, limits)
        fitted = fit_ids(ids, decoding, limits.n_positions, "error", "messages")
    except PromptTooLong as error:
        if not is_strict or len(call.messages) == 1:
            raise
        hint = 'overflow: "drop_oldest" leaves out the first turns'
        raise PromptTooLong(f"{error.message}; {hint}", error.param) from None
    inner = GenerateCall(("",), call.n, logprobs=call.logprobs, origin=call.origin)
    generation = Generation(inner, tokenizer, decoding, grammar)
    generation.add(fitted, None)
    return Turn(generation, chat.task is not None, num_dropped)


def _fitting(
    messages: Messages, chat: ChatFormat, tokenizer: Tokenizer, decoding: Decoding, limits: ModelLimits
) -> Steps[tuple[list[int], int]]:
    """The ids of as many of the newest turns as fit, and how many messages do not. A turn begins with a
    user's message; what the system says stays, and so does the last turn.
    """
    wanted = decoding.max_new_tokens
    if not decoding.is_explicit:
        wanted = min(wanted, limits.n_positions // 4)  # room for an answer, where nobody said how much
    starts = [at for at, message in enumerate(messages) if message["role"] == "user"] or [0]
    starts = yield from _starts_in_reach(messages, [0, *starts[1:]], tokenizer, limits.n_positions)
    first, last = 0, len(starts) - 1  # of those that may be the one; the more turns, the longer the prompt
    probe = first
    while True:
        rest = [m for at, m in enumerate(messages) if at >= starts[probe] or m["role"] == "system"]
        ids = yield from render(rest, chat, tokenizer)
        is_fitting = len(ids) + wanted <= limits.n_positions
        first, last = (first, probe) if is_fitting else (min(probe + 1, last), last)
        if probe == first == last:
            return ids, len(messages) - len(rest)
        probe = (first + last) // 2


def _starts_in_reach(
    messages: Messages, starts: list[int], tokenizer: Tokenizer, max_tokens: int
) -> Steps[list[int]]:
    """Of the places where turns begin, those behind which the messages can fit, and the last in any case."""
    count, at = 0, len(messages)
    while at > 0 and count <= max_tokens:
        at -= 1
        text = messages[at]["content"]
        if at >= starts[-1]:  # it must stay, so it must fit
            yield from check_can_fit(tokenizer, text, max_tokens, f"messages.{at}")
        count += len((yield from encode(tokenizer, text[: 64 * max_tokens])))
        yield
    first = at if count <= max_tokens else at + 1
    return [start for start in starts if start >= first] or starts[-1:]


def size_of_messages(messages: Messages) -> int:
    """Bytes of a conversation's prompt, about: what was said, and what a format puts around each message."""
    return size_of(message["content"] for message in messages) + _FRAME_BYTES * len(messages)


def render(messages: Messages, chat: ChatFormat, tokenizer: Tokenizer) -> Steps[list[int]]:
    """The ids of a conversation; literals are the format's, and what was said is text."""
    try:
        segments = chat.segments(messages)
    except ChatError as error:
        raise InvalidRequest(str(error), "messages") from None
    ids = list(tokenizer.bos_ids) if chat.task is not None else []
    for text, is_user_text in segments:
        ids += (yield from encode(tokenizer, text)) if is_user_text else tokenizer.encode_specials(text)
        yield
    return ids or [tokenizer.eos_id]
