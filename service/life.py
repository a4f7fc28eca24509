"""An application's life: load, warm up, serve, drain.

The lifespan returns at once and the model loads behind it, or does so already: `/livez` answers from the
first moment and `/readyz` says when. Signals are not handled here: `service.server` calls `Life.drain`.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from model_store.chat import find_chat
from model_store.checkpoint import Checkpoint
from model_store.entry import ModelEntry
from model_store.errors import StoreError
from model_store.generation_config import sampling_defaults, with_sampling
from service.api.client import end_tasks
from service.api.key_file import watch_keys
from service.api.state import Served, ServiceState
from service.engine.quota import Quota
from service.engine_setup import Opening
from service.errors import Draining, EngineDead, SettingsError
from service.logs import get_logger
from service.tasks.calls import ModelLimits
from service.tasks.run import TaskRunner

if TYPE_CHECKING:  # the engine imports torch: seconds, spent behind the open listener
    from service.engine.async_engine import AsyncEngine

_LAST_FRAMES_S = 3.0  # for streams to get their error frame when the engine is gone
_POLL_S = 0.02


class Life:
    """From loading to the end of one application.

    Args:
        state: what the routes share.
        opening: of the model; may have begun.
    """

    def __init__(self, state: ServiceState, opening: Opening) -> None:
        self.state = state
        self.failure: BaseException | None = None  # why the process must end
        self.failed = asyncio.Event()
        self._ready = asyncio.Event()
        self._opening = opening
        self._engine: AsyncEngine | None = None
        self._hurry = asyncio.Event()

    @asynccontextmanager
    async def span(self, app: FastAPI) -> AsyncIterator[None]:
        """The lifespan: loading starts with it, the engine stops with it."""
        tasks = [asyncio.create_task(work) for work in (self._serve(), watch_keys(self.state))]
        try:
            yield
        finally:
            await end_tasks(*tasks)
            if self._engine is not None:
                await self._engine.stop()
            if self.state.served is not None:
                self.state.served.runner.close()
            await asyncio.to_thread(self.state.tracing.close)
            gc.unfreeze()  # see `_load`; it is the process's, but costs other applications in it only time

    async def _serve(self) -> None:
        """Load, then watch the engine; ends only when something is wrong."""
        try:
            engine = await self._load()
            await engine.died.wait()
            self._fail(EngineDead("the engine stopped working; the process ends to be restarted"))
        except (StoreError, SettingsError) as error:
            self._fail(SettingsError(str(error)))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            get_logger().error("the model could not be loaded", exc_info=error)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.failed.set()

    async def _load(self) -> AsyncEngine:
        settings, log = self.state.settings, get_logger()
        model = await asyncio.to_thread(self._opening.opened)
        entry, tokenizer, self._engine = model.entry, model.tokenizer, model.engine
        drawn, ignored = sampling_defaults(entry.path)
        tasks = with_sampling(entry.tasks, drawn)
        for warning in ignored:
            log.warning(warning)
        self.state.metrics.model = entry.name
        facts = _facts(entry, model.checkpoint)
        own = tasks["generate"].sampling
        facts["sampling"] = {name: value for name, value in own.items() if name != "max_new_tokens"}
        # More sequences than that would never fit. A key file may get more keys at any time.
        is_shared = settings.api_keys_file is not None or self.state.keyring.num_keys > 1
        max_sequences = self._engine.quota.share if is_shared else self._engine.quota.limit
        limits = ModelLimits(
            facts["n_positions"],
            min(settings.max_job_sequences, max_sequences),
            settings.parse_special_tokens,
            Quota(self._engine.quota.limit - settings.max_waiting).share,
        )
        chat_format = await asyncio.to_thread(find_chat, entry.path, tokenizer, tasks, settings.chat_template)
        runner = await asyncio.to_thread(TaskRunner, self._engine, tokenizer, tasks, limits, chat_format)
        await self._engine.start()  # last: all this is done while it loads
        facts.update(self._engine.facts)
        self.state.served = Served(
            entry.name, entry.version, tasks, runner, self._engine, int(time.time()), facts
        )
        gc.freeze()  # what was loaded stays: a full collection would walk it, 0.1 s and more without a token
        seconds = time.monotonic() - self._opening.began_at
        log.info("ready", model=entry.label, seconds=round(seconds, 1))
        self._ready.set()
        return self._engine

    async def settled(self) -> None:
        """Wait until the model is loaded, or cannot be: `failure` then says why."""
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, self.failed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def hurry(self) -> None:
        """Skip what is left of the wait of `drain`."""
        self._hurry.set()

    async def drain(self) -> None:
        """Refuse new work, let running requests finish for `drain_s`, end the rest with an error frame."""
        self.state.is_draining = True
        await self._until_idle(self.state.settings.drain_s)
        await self.end_requests(Draining("the service stopped before this request was done"))

    async def end_requests(self, error: Exception) -> None:
        """End every request in flight and give it a moment to say so."""
        self._hurry.clear()
        self.state.fail_all(error)
        await self._until_idle(_LAST_FRAMES_S)

    async def _until_idle(self, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while self.state.in_flight and time.monotonic() < end and not self._hurry.is_set():
            await asyncio.sleep(_POLL_S)


def _facts(entry: ModelEntry, checkpoint: Checkpoint) -> dict[str, Any]:
    """What `/info` tells about the model; the engine adds its part."""
    architecture = checkpoint.architecture
    return {
        "parameters": checkpoint.num_parameters,
        "license": entry.manifest.license,
        "vocab_size": architecture.vocab_size,
        "n_positions": architecture.n_positions,
        "n_layer": architecture.n_layer,
        "n_embd": architecture.n_embd,
    }
