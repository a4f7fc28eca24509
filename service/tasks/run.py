"""Runs tasks: the one door through which every dialect reaches the engine.

`prepare_*` validates, renders and tokenises (a large text in turns in a thread), checks lengths and submits;
whatever can be refused is refused there. What it returns yields the task's events. How each kind works stands
in `generate`, `summarize`, `qa` and `choice`.
"""

from __future__ import annotations

from collections.abc import Mapping

from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.errors import InvalidRequest, NotFound
from service.tasks import answers, choice, generate, qa, reduction, summarize
from service.tasks.calls import (
    GenerateCall,
    ModelLimits,
    Overflow,
    QaCall,
    SamplingFields,
    SummarizeCall,
    TaskCall,
)
from service.tasks.fitting import (
    Fitted,
    check_fields,
    check_not_blank,
    check_unicode,
    fit_fields,
    fit_ids,
    fit_text,
)
from service.tasks.generate import Prompt
from service.tasks.job import Prepared, Submitter, submit
from service.tasks.offload import Offloader, size_of
from service.tasks.sampling import Decoding, check_option, resolve
from service.tasks.vocabulary import Vocabulary

_OPTIONS: dict[str, set[str]] = {
    "generate": {"n", "echo", "logprobs"},
    "summarize": {"strategy"},
    "qa": {"num_answers", "no_answer", "grounded"},
    "choice": set(),
}
_ALL_OPTIONS = ("n", "echo", "logprobs", "strategy", "num_answers", "no_answer", "grounded")


class TaskRunner:
    """Turns calls into events.

    Args:
        engine: takes the sequences; `AsyncEngine` in the service.
        tokenizer: the served model's.
        tasks: the served model's, by name.
        limits: of the model and the settings.
    """

    def __init__(
        self, engine: Submitter, tokenizer: Tokenizer, tasks: Mapping[str, Task], limits: ModelLimits
    ) -> None:
        self.tasks = dict(tasks)
        self.limits = limits
        self._engine = engine
        self._tokenizer = tokenizer
        self._offloader = Offloader()
        has_questions = any(task.kind == "qa" for task in tasks.values())
        self._vocabulary = Vocabulary(tokenizer) if has_questions else None

    def close(self) -> None:
        """Let the worker thread end."""
        self._offloader.close()

    def task(self, name: str) -> Task:
        """The task of that name.

        Raises:
            NotFound: the served model has none.
        """
        if name not in self.tasks:
            raise NotFound(f"no such task; the served model has: {', '.join(self.tasks)}")
        return self.tasks[name]

    async def prepare_generate(self, call: GenerateCall) -> Prepared:
        """Admit a call to continue prompts.

        Raises:
            RequestError: something about the call is not legal, or too long.
            Refused: the engine takes no more work now.
        """
        task = self.task("generate")
        decoding = self._resolve(call.sampling, task, call.allow_zero)
        generate.check_options(call)
        self._check_prompts(call)
        size = size_of(call.prompts)
        prompts = await self._offloader.run(size, self._fit_prompts(call, decoding), call.origin)
        return self._submit_generate(call, prompts, decoding)

    def _check_prompts(self, call: GenerateCall) -> None:
        if call.n > self.limits.max_job_sequences:
            raise InvalidRequest(f"n must be at least 1 and at most {self.limits.max_job_sequences}", "n")
        most = self.limits.max_job_sequences // call.n
        if not 0 < len(call.prompts) <= most:
            raise InvalidRequest(f"prompt must be 1 to {most} prompts with n = {call.n}", "prompt")
        for place, prompt in enumerate(call.prompts):
            if isinstance(prompt, str):
                check_unicode(_param(call, place), prompt)

    def _fit_prompts(self, call: GenerateCall, decoding: Decoding) -> Steps[list[Prompt]]:
        prompts = []
        for place, prompt in enumerate(call.prompts):
            fitted = yield from self._fit_prompt(prompt, _param(call, place), decoding, call.overflow)
            text = prompt if isinstance(prompt, str) else None
            prompts.append(self._prompt(fitted, text, call.echo))
        return prompts

    def _fit_prompt(
        self, prompt: str | tuple[int, ...], param: str, decoding: Decoding, overflow: Overflow
    ) -> Steps[Fitted]:
        n_positions = self.limits.n_positions
        if isinstance(prompt, str):
            return (yield from fit_text(self._tokenizer, prompt, decoding, n_positions, overflow, param))
        ids = list(prompt) or [self._tokenizer.eos_id]
        fitted = fit_ids(ids, decoding, n_positions, overflow, param)
        if not all(0 <= token_id < self._tokenizer.vocab_size for token_id in fitted.prompt_ids):
            legal = f"token ids from 0 to {self._tokenizer.vocab_size - 1}"
            raise InvalidRequest(f"{param} must hold {legal}", param)
        return fitted

    def _prompt(self, fitted: Fitted, text: str | None, has_echo: bool) -> Prompt:
        return Prompt(fitted, generate.echo_of(self._tokenizer, fitted, text) if has_echo else "")

    def _submit_generate(self, call: GenerateCall, prompts: list[Prompt], decoding: Decoding) -> Prepared:
        requests = generate.build_requests(prompts, decoding, call)
        num_dropped = sum(prompt.fitted.num_dropped for prompt in prompts)
        job = submit(self._engine, requests, call.origin, self.limits, "prompt", num_dropped)
        seed = decoding.params.seed
        return Prepared(
            job,
            seed,
            lambda: generate.generate_events(job, self._tokenizer, prompts, call, seed),
        )

    async def prepare_summarize(self, call: SummarizeCall) -> Prepared:
        """Admit a call to summarise a text, with the model's task `summarize`.

        Raises:
            RequestError: something about the call is not legal, or too long.
            Refused: the engine takes no more work now.
        """
        return await self._summarize(self._task_for("summarize"), call)

    async def _summarize(self, task: Task, call: SummarizeCall) -> Prepared:
        check_unicode("text", call.text)
        check_not_blank("text", call.text)
        decoding = self._resolve(call.sampling, task)
        summarize.check_sampling(call, task)
        summarizer = summarize.Summarizer(
            task, self._tokenizer, decoding, self.limits, call.origin.is_streamed
        )
        work = summarizer.plot(call.text, call.strategy, call.overflow)
        plotted = await self._offloader.run(size_of([call.text]), work, call.origin)
        job = submit(self._engine, plotted.requests, call.origin, self.limits, "text", plotted.num_dropped)
        return Prepared(
            job,
            summarizer.seed,
            lambda: reduction.summarize_events(job, summarizer, plotted, self._offloader, call.origin),
        )

    async def prepare_qa(self, call: QaCall) -> Prepared:
        """Admit a question about a context, with the model's task `qa`.

        Raises:
            RequestError: something about the call is not legal, or too long.
            Refused: the engine takes no more work now.
        """
        return await self._ask(self._task_for("qa"), call)

    async def _ask(self, task: Task, call: QaCall) -> Prepared:
        for name, text in (("question", call.question), ("context", call.context)):
            check_unicode(name, text)
            check_not_blank(name, text)
        check_option("num_answers", call.num_answers)
        decoding = self._resolve(call.sampling, task)
        qa.check_sampling(call)
        assert self._vocabulary is not None, "a model with a qa task has its vocabulary indexed"
        reader = qa.Reader(task, self._tokenizer, self._vocabulary, decoding, self.limits)
        size = size_of([call.context, call.question])
        windows = await self._offloader.run(size, reader.read(call), call.origin)
        requests = qa.window_requests(reader, call, windows)
        job = submit(self._engine, requests, call.origin, self.limits, "context")
        return Prepared(
            job, decoding.params.seed, answers.QaRun(job, reader, call, windows, self._offloader).events
        )

    async def prepare_task(self, call: TaskCall) -> Prepared:
        """Admit a call to any task of the served model.

        Raises:
            NotFound: there is no such task.
            RequestError: something about the call is not legal, or too long.
            Refused: the engine takes no more work now.
        """
        task = self.task(call.name)
        check_fields(task, call.fields)
        _check_options(task, call)
        if task.kind == "summarize":
            return await self._summarize(task, _as_summarize(call))
        if task.kind == "qa":
            return await self._ask(task, _as_qa(call))
        return await (self._choose(task, call) if task.kind == "choice" else self._continue(task, call))

    async def _continue(self, task: Task, call: TaskCall) -> Prepared:
        as_generate = _as_generate(call)
        decoding = self._resolve(call.sampling, task)
        generate.check_options(as_generate)
        work = self._render(task, call, decoding, as_generate.echo)
        prompt = await self._offloader.run(size_of(call.fields.values()), work, call.origin)
        return self._submit_generate(as_generate, [prompt], decoding)

    def _render(self, task: Task, call: TaskCall, decoding: Decoding, has_echo: bool) -> Steps[Prompt]:
        n_positions = self.limits.n_positions
        fitted = yield from fit_fields(
            task, self._tokenizer, call.fields, decoding, n_positions, call.overflow
        )
        text = "".join(part for part, _ in task.segments(call.fields))
        return self._prompt(fitted, text, has_echo)

    async def _choose(self, task: Task, call: TaskCall) -> Prepared:
        seed = self._resolve(call.sampling, task).params.seed
        choice.check_neutral(call.sampling)
        work = choice.build_requests(task, self._tokenizer, call.fields, self.limits, call.overflow)
        requests, num_dropped = await self._offloader.run(size_of(call.fields.values()), work, call.origin)
        job = submit(self._engine, requests, call.origin, self.limits, "labels", num_dropped)
        return Prepared(job, seed, lambda: choice.choice_events(job, task, seed))

    def _resolve(self, given: SamplingFields, task: Task, allow_zero: bool = False) -> Decoding:
        return resolve(given, task, self._tokenizer, allow_zero)

    def _task_for(self, kind: str) -> Task:
        """The task an endpoint of that name serves."""
        task = self.tasks.get(kind)
        if task is None or task.kind != kind:
            raise NotFound(f"the served model has no task {kind!r}")
        return task


def _param(call: GenerateCall, place: int) -> str:
    return "prompt" if len(call.prompts) == 1 else f"prompt.{place}"


def _check_options(task: Task, call: TaskCall) -> None:
    legal = _OPTIONS[task.kind]
    for name in _ALL_OPTIONS:
        if getattr(call, name) is not None and name not in legal:
            raise InvalidRequest(f"{name} must be left out: tasks of kind {task.kind} do not have it", name)


def _as_generate(call: TaskCall) -> GenerateCall:
    return GenerateCall(
        prompts=("",),  # rendered from the fields instead
        n=1 if call.n is None else call.n,
        echo=bool(call.echo),
        logprobs=call.logprobs,
        overflow=call.overflow,
        sampling=call.sampling,
        origin=call.origin,
    )


def _as_summarize(call: TaskCall) -> SummarizeCall:
    strategy = call.strategy or "auto"
    return SummarizeCall(call.fields["text"], strategy, call.overflow, call.sampling, call.origin)


def _as_qa(call: TaskCall) -> QaCall:
    return QaCall(
        question=call.fields["question"],
        context=call.fields["context"],
        num_answers=1 if call.num_answers is None else call.num_answers,
        no_answer=call.no_answer is not False,
        grounded=call.grounded is not False,
        overflow=call.overflow,
        sampling=call.sampling,
        origin=call.origin,
    )
