"""Runs tasks: the one door through which every dialect reaches the engine.

Each method gives a context. Entering it admits the call: it validates, renders, tokenises (a large text in
turns in a thread), checks lengths and submits; whatever can be refused is refused there. Inside, the task's
events come. Leaving it, for whatever reason, aborts what is unfinished. How each kind works stands in
`generate`, `chat`, `summarize`, `qa` and `choice`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace

from model_store.chat import ChatFormat
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.async_engine import AsyncEngine
from service.engine.job_stream import JobStream
from service.engine.sequence import SequenceRequest
from service.errors import InvalidRequest, NotFound
from service.tasks import answers, chat, choice, generate, qa, reduction, summarize
from service.tasks.calls import ChatCall, GenerateCall, ModelLimits, Origin, QaCall, SummarizeCall, TaskCall
from service.tasks.constraints import Grammar, Grammars, constrained_sampling
from service.tasks.events import Event
from service.tasks.fitting import check_fields, check_not_blank, check_unicode
from service.tasks.offload import Offloader, size_of
from service.tasks.rendering import encode
from service.tasks.sampling import check_places, decoding_for, num_sequences
from service.tasks.vocabulary import Vocabulary

# Enter it to be admitted; its events end with exactly one `Done`; leave it to abort what is unfinished.
Running = AbstractAsyncContextManager[AsyncIterator[Event]]

_OPTIONS: dict[str, set[str]] = {
    "generate": {"n", "echo", "logprobs", "constraint"},
    "summarize": {"strategy"},
    "qa": {"num_answers", "no_answer", "grounded"},
    "choice": set(),
}
_ALL_OPTIONS = ("n", "echo", "logprobs", "constraint", "strategy", "num_answers", "no_answer", "grounded")


class TaskRunner:
    """Turns calls into events.

    Args:
        engine: takes the sequences.
        tokenizer: the served model's.
        tasks: the served model's, by name.
        limits: of the model and the settings.
        chat_format: how the model holds a conversation; None where it holds none.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        tokenizer: Tokenizer,
        tasks: Mapping[str, Task],
        limits: ModelLimits,
        chat_format: ChatFormat | None = None,
    ) -> None:
        self.tasks = dict(tasks)
        self.limits = limits
        self._engine = engine
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self._offloader = Offloader()
        self._grammars = Grammars(tokenizer, self._offloader)
        has_questions = any(task.kind == "qa" for task in tasks.values())
        self._vocabulary = Vocabulary(tokenizer) if has_questions else None

    def close(self) -> None:
        """Let the worker thread end."""
        self._offloader.close()

    @asynccontextmanager
    async def generate(self, call: GenerateCall) -> AsyncIterator[AsyncIterator[Event]]:
        """Continue prompts.

        Raises:
            RequestError: something about the call is not legal, or too long.
            Refused: the engine takes no more work now.
        """
        task, limit = self._task("generate"), self.limits.max_job_sequences
        sampling = call.sampling if call.constraint is None else constrained_sampling(call)
        decoding = decoding_for(
            sampling, task, self.tokenizer, call.allow_zero, n=call.n, logprobs=call.logprobs or 0
        )
        if call.fills_window and not decoding.is_explicit:
            decoding = replace(decoding, max_new_tokens=self.limits.n_positions)
        check_places(decoding, self.limits, call.origin.is_streamed)
        each = num_sequences(decoding)
        if each > limit:
            raise InvalidRequest(f"n must be at least 1 and at most {limit}", "n")
        if not 0 < len(call.prompts) <= limit // each:
            of_what = f"n = {each}" if decoding.params.num_beams == 1 else f"num_beams = {each}"
            raise InvalidRequest(f"prompt must be 1 to {limit // each} prompts with {of_what}", "prompt")
        grammar = await self._grammar(call)
        work = generate.plan(call, self.tokenizer, decoding, self.limits, grammar)
        generation = await self._offloader.run(size_of(call.prompts), work, call.origin)
        async with self._running(generation.requests, call.origin, generation.events) as events:
            yield events

    @asynccontextmanager
    async def chat(self, call: ChatCall) -> AsyncIterator[AsyncIterator[Event]]:
        """Say the next turn of a conversation. Raises as `generate`, and where the model holds none."""
        if self.chat_format is None:
            raise InvalidRequest(chat.NO_FORMAT, "messages")
        if not call.messages:
            raise InvalidRequest("messages must hold at least one message", "messages")
        if call.n > (limit := self.limits.max_job_sequences):
            raise InvalidRequest(f"n must be at least 1 and at most {limit}", "n")
        task = chat.task_of(self.chat_format, self.tasks, self.limits)
        sampling = chat.sampling_of(call, task)
        decoding = decoding_for(sampling, task, self.tokenizer, n=call.n, logprobs=call.logprobs or 0)
        check_places(decoding, self.limits, call.origin.is_streamed)
        grammar = await self._grammar(call)
        work = chat.plan(call, self.chat_format, self.tokenizer, decoding, self.limits, grammar)
        turn = await self._offloader.run(chat.size_of_messages(call.messages), work, call.origin)
        async with self._running(turn.requests, call.origin, turn.events) as events:
            yield events

    async def tokenize(self, text: str, adds_special: bool, origin: Origin) -> list[int]:
        """Give the ids of a prompt, special tokens in it parsed as in `generate`.

        Args:
            text: the prompt.
            adds_special: whether the tokenizer puts its own special tokens around it.
            origin: whose turn it takes.
        """
        check_unicode("prompt", text)
        work = encode(self.tokenizer, text, self.limits.parses_special)
        ids = await self._offloader.run(size_of([text]), work, origin)
        before, after = self.tokenizer.frame_ids if adds_special else ((), ())
        return [*before, *ids, *after]

    async def tokenize_chat(self, call: ChatCall) -> list[int]:
        """Give the ids of a conversation's prompt. Raises as `chat`."""
        if self.chat_format is None:
            raise InvalidRequest(chat.NO_FORMAT, "messages")
        work = chat.render(call.messages, self.chat_format, self.tokenizer)
        return await self._offloader.run(chat.size_of_messages(call.messages), work, call.origin)

    def summarize(self, call: SummarizeCall) -> Running:
        """Summarise a text, with the model's task `summarize`. Raises as `generate`."""
        return self._summarize(self._endpoint_task("summarize"), call)

    @asynccontextmanager
    async def _summarize(self, task: Task, call: SummarizeCall) -> AsyncIterator[AsyncIterator[Event]]:
        check_unicode("text", call.text)
        check_not_blank("text", call.text)
        decoding = decoding_for(call.sampling, task, self.tokenizer)
        summarize.check_sampling(call, task, decoding)
        check_places(decoding, self.limits, call.origin.is_streamed)
        max_sequences = max(self.limits.max_job_sequences // num_sequences(decoding), 1)
        limits = replace(self.limits, max_job_sequences=max_sequences)
        summarizer = summarize.Summarizer(task, self.tokenizer, decoding, limits, call.origin.is_streamed)
        work = summarizer.plot(call.text, call.strategy, call.overflow)
        plotted = await self._offloader.run(size_of([call.text]), work, call.origin)
        async with self._running(
            plotted.requests,
            call.origin,
            lambda job: reduction.summarize_events(job, summarizer, plotted, self._offloader, call.origin),
        ) as events:
            yield events

    def answer(self, call: QaCall) -> Running:
        """Answer a question about a context, with the model's task `qa`. Raises as `generate`."""
        return self._answer(self._endpoint_task("qa"), call)

    @asynccontextmanager
    async def _answer(self, task: Task, call: QaCall) -> AsyncIterator[AsyncIterator[Event]]:
        for name, text in (("question", call.question), ("context", call.context)):
            check_unicode(name, text)
            check_not_blank(name, text)
        decoding = decoding_for(call.sampling, task, self.tokenizer, num_answers=call.num_answers)
        qa.check_sampling(call)
        assert self._vocabulary is not None, "a model with a qa task has its vocabulary indexed"
        reader = qa.Reader(task, self.tokenizer, self._vocabulary, decoding, self.limits)
        size = size_of([call.context, call.question])
        windows = await self._offloader.run(size, reader.read(call), call.origin)
        async with self._running(
            qa.window_requests(reader, call, windows),
            call.origin,
            lambda job: answers.QaRun(job, reader, call, windows, self._offloader).events(),
        ) as events:
            yield events

    def run_task(self, call: TaskCall) -> Running:
        """Run any task of the served model.

        Raises:
            NotFound: there is no such task.
            RequestError, Refused: as `generate`.
        """
        task = self._task(call.name)
        check_fields(task, call.fields)
        for name in _ALL_OPTIONS:
            if getattr(call, name) is not None and name not in _OPTIONS[task.kind]:
                text = f"{name} must be left out: tasks of kind {task.kind} do not have it"
                raise InvalidRequest(text, name)
        match task.kind:
            case "generate":
                return self._continue(task, call.as_generate(), call.fields)
            case "summarize":
                return self._summarize(task, call.as_summarize())
            case "qa":
                return self._answer(task, call.as_qa())
            case "choice":
                return self._choose(task, call)

    @asynccontextmanager
    async def _continue(
        self, task: Task, call: GenerateCall, fields: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        sampling = call.sampling if call.constraint is None else constrained_sampling(call)
        decoding = decoding_for(sampling, task, self.tokenizer, n=call.n, logprobs=call.logprobs or 0)
        check_places(decoding, self.limits, call.origin.is_streamed)
        grammar = await self._grammar(call)
        work = generate.plan_task(call, task, fields, self.tokenizer, decoding, self.limits, grammar)
        generation = await self._offloader.run(size_of(fields.values()), work, call.origin)
        async with self._running(generation.requests, call.origin, generation.events) as events:
            yield events

    @asynccontextmanager
    async def _choose(self, task: Task, call: TaskCall) -> AsyncIterator[AsyncIterator[Event]]:
        seed = decoding_for(call.sampling, task, self.tokenizer).params.seed
        choice.check_neutral(call.sampling)
        work = choice.build_requests(task, self.tokenizer, call.fields, self.limits, call.overflow)
        requests, num_dropped = await self._offloader.run(size_of(call.fields.values()), work, call.origin)
        async with self._running(
            requests, call.origin, lambda job: choice.choice_events(job, task, seed, num_dropped)
        ) as events:
            yield events

    async def _grammar(self, call: GenerateCall | ChatCall) -> Grammar | None:
        return None if call.constraint is None else await self._grammars.compile(call.constraint, call.origin)

    @asynccontextmanager
    async def _running(
        self,
        requests: Sequence[SequenceRequest],
        origin: Origin,
        make_events: Callable[[JobStream], AsyncGenerator[Event]],
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Submit sequences and give what becomes of them."""
        async with (
            self._engine.submit(requests, origin.tenant, origin.salt, origin.deadline) as job,
            aclosing(make_events(job)) as events,
        ):
            yield events

    def _task(self, name: str) -> Task:
        if name not in self.tasks:
            raise NotFound(f"no such task; the served model has: {', '.join(self.tasks)}")
        return self.tasks[name]

    def _endpoint_task(self, kind: str) -> Task:
        """The task an endpoint of that name serves."""
        task = self.tasks.get(kind)
        if task is None or task.kind != kind:
            raise NotFound(f"the served model has no task {kind!r}")
        return task
