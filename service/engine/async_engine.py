"""The one thread that owns an Engine, and the event loop's side of it.

    submit() -> commands -> [engine thread: drain commands, step, repeat] -> one call per step -> JobStream

Everything but `_run` and what it calls runs on the event loop. The thread sleeps while there is nothing to
do. A thread that died, or that hangs in a step, is reported by `died`; the process should then be restarted.
"""

from __future__ import annotations

import asyncio
import collections.abc
import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from service.engine.block_pool import BlockPool
from service.engine.engine import Engine, Outputs
from service.engine.foresight import check_cache, check_time, is_too_late
from service.engine.job_stream import JobStream
from service.engine.pulse import Pulse
from service.engine.quota import Quota
from service.engine.sequence import FinishReason, Job, Sequence, SequenceOutput, SequenceRequest, Status
from service.errors import DeadlineExceeded, EngineDead, EngineFault, NotReady

_WATCH_EVERY_S = 0.25
_HUNG_AFTER_S = 2.0
_HUNG_AFTER_BEATS = 10  # times the longest wait for a sign of life so far: a slow prefill is no fault

Command = Callable[[Engine], None]


class AsyncEngine:
    """Runs an engine on its own thread.

    Args:
        make_engine: builds, compiles and warms the engine up; runs on the engine thread.
        max_sequences: running and waiting together; `submit` refuses more.
        hung_after_s: a step that gives no sign of life for longer than this, and than ten times the longest
            such wait so far, hangs.
        watch_every_s: how often that is looked at.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        max_sequences: int = 1024,
        *,
        hung_after_s: float = _HUNG_AFTER_S,
        watch_every_s: float = _WATCH_EVERY_S,
    ) -> None:
        self.quota = Quota(max_sequences)  # of sequences submitted and not finished
        self._hung_after_s, self._watch_every_s = hung_after_s, watch_every_s
        self.died = asyncio.Event()
        self.facts: dict[str, str | int] = {}  # how the engine was built; known once it is warm
        self._pool: BlockPool | None = None  # the engine's; only its size is read here
        self._make_engine = make_engine
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._streams: dict[Job, JobStream] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._built: Future[None] = Future()
        self._is_warm = False
        self._pulse: Pulse | None = None  # of the engine's steps; written by the thread, read by the watchdog

    # ---- life -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the thread, which builds the engine; needs no event loop, and is done once."""
        self._built.set_running_or_notify_cancel()  # who stops waiting for it does not cancel it
        self._thread.start()

    async def start(self) -> None:
        """Begin, unless that was done, and wait until the engine is warm.

        Raises:
            Exception: whatever building the engine raised.
        """
        self._loop = asyncio.get_running_loop()
        if self._thread.ident is None:
            self.begin()
        await asyncio.wrap_future(self._built)
        self._is_warm = True
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop the thread after its step, or once it has built the engine, which is not waited for; leave it
        behind if it hangs. End the streams that are left.
        """
        if not self._is_warm:
            self._commands.put(None)
            return
        self._is_warm = False
        self._watcher.cancel()
        self._commands.put(None)
        if not self.died.is_set():
            await asyncio.to_thread(self._thread.join, _HUNG_AFTER_S)
        self.fail_all(EngineFault())

    @property
    def is_ready(self) -> bool:
        """Whether new work would be taken, if there is room."""
        return self._is_warm and not self.died.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread neither died nor hangs."""
        return not self.died.is_set()

    @property
    def num_in_flight(self) -> int:
        """Sequences submitted and not finished."""
        return self.quota.num_held

    def fail_all(self, error: Exception) -> None:
        """End every stream with an error; leaving the streams aborts their sequences."""
        for stream in self._streams.values():
            stream.fail(error)

    # ---- jobs -------------------------------------------------------------------------------------------

    def submit(
        self,
        requests: collections.abc.Sequence[SequenceRequest],
        tenant: str = "",
        salt: str = "",
        deadline: float = math.inf,
    ) -> JobStream:
        """Queue the sequences of one job.

        Args:
            requests: at least one.
            tenant: whose share and whose turns it takes; "" where there is nobody to be fair to.
            salt: of the prefix cache; jobs with different salts share nothing.
            deadline: until when it must be done, on the monotonic clock.

        Raises:
            NotReady, EngineDead, QueueFull: nothing was queued.
            InvalidRequest: it cannot be done by then, or as `JobStream.extend`.
        """
        is_scored = any(request.params.score_from is not None for request in requests)
        self.check_room(tenant, sum(request.params.num_beams for request in requests))
        if is_scored:
            unfinished = (s for stream in self._streams.values() for s in stream.unfinished.values())
            check_time(requests, tenant, unfinished, self._cost, deadline)
        job = Job(tenant, salt)
        stream = JobStream(self, job, deadline)
        stream.extend(requests)
        self._streams[job] = stream
        return stream

    def check_room(self, tenant: str = "", count: int = 1) -> None:
        """Refuse a job of so many sequences if `submit` would, before it is parsed and tokenised.

        Raises:
            NotReady, EngineDead, QueueFull: as `submit`.
        """
        if self.died.is_set():
            raise EngineDead
        if not self._is_warm:
            raise NotReady
        self.quota.check(tenant, count)

    def enqueue(self, stream: JobStream, sequences: collections.abc.Sequence[Sequence]) -> None:
        """See `StreamOwner`."""
        assert self._pool is not None, "the engine is warm"
        num_places = sum(sequence.params.num_beams for sequence in sequences)
        if num_places > len(sequences):
            check_cache((sequence.request for sequence in sequences), self._pool)
        self.quota.take(stream.job.tenant, num_places)
        self._commands.put(lambda engine: self._add_all(engine, sequences))
        if self.died.is_set():
            stream.fail(EngineFault())

    def drop(self, stream: JobStream, sequences: collections.abc.Sequence[Sequence]) -> None:
        """See `StreamOwner`."""
        if sequences:
            self.quota.give(stream.job.tenant, sum(s.params.num_beams for s in sequences))
            self._commands.put(lambda engine: engine.abort(sequences))

    def close(self, stream: JobStream) -> None:
        """See `StreamOwner`."""
        self._streams.pop(stream.job, None)

    def _deliver(self, outputs: Outputs) -> None:
        for sequence, output in outputs:
            stream = self._streams.get(sequence.job)
            if stream is None or sequence.index not in stream.unfinished:
                continue  # nobody waits for it any more
            if output.finish_reason is not None:
                self.quota.give(sequence.job.tenant, sequence.params.num_beams)
            stream.put(output)

    # ---- watching ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while not self.died.is_set():
            await asyncio.sleep(self._watch_every_s)
            self._look()

    def _look(self) -> None:
        assert self._pulse is not None, "the engine is warm"
        still_s = self._pulse.look(self._watch_every_s)
        if still_s > max(self._hung_after_s, _HUNG_AFTER_BEATS * self._pulse.slowest_s):
            self._die()
        for stream in self._streams.values():
            if is_too_late(stream.unfinished.values(), self._cost, stream.deadline):
                stream.fail(DeadlineExceeded())

    def _die(self) -> None:
        self.died.set()
        self.fail_all(EngineFault())

    # ---- the engine thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            engine = self._make_engine()
        except BaseException as error:
            self._built.set_exception(error)
            return
        self._pulse, self._cost = engine.pulse, engine.scheduler.cost
        self.facts, self._pool = engine.facts, engine.scheduler.pool
        self._built.set_result(None)
        try:
            while self._take_commands(engine):
                outputs = engine.step()
                if outputs:
                    self._call(self._deliver, outputs)
        except BaseException as error:
            engine.on_fault(error)
            self._call(self._die)

    def _take_commands(self, engine: Engine) -> bool:
        """Carry out what was asked meanwhile, waiting for it when there is no work; false means stop."""
        while not (self._commands.empty() and engine.has_work):
            command = self._commands.get()
            if command is None:
                return False
            command(engine)
        return True

    def _add_all(self, engine: Engine, sequences: collections.abc.Sequence[Sequence]) -> None:
        for sequence in sequences:
            try:
                engine.add(sequence)
            except Exception as error:
                engine.on_fault(error)
                sequence.status = Status.FINISHED
                failed = SequenceOutput(sequence.index, finish_reason=FinishReason.ERROR)
                self._call(self._deliver, [(sequence, failed)])

    def _call(self, function: Callable[..., None], *args: object) -> None:
        """Run a function on the event loop; a loop that is gone needs to know nothing."""
        with suppress(RuntimeError):  # it closed, maybe just now
            self._loop.call_soon_threadsafe(function, *args)
