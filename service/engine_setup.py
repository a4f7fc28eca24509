"""From settings to an engine: its configuration, its loading, and what it tells while it does.

torch is imported inside functions, so that a listener is open before. The engine itself knows no settings
and no metrics.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model_store.checkpoint import Checkpoint, read_checkpoint
from model_store.entry import ModelEntry
from model_store.errors import StoreError
from model_store.store import resolve
from model_store.tokenizer import Tokenizer
from service.engine.container import memory_limit_bytes
from service.errors import SettingsError
from service.logs import get_logger
from service.metrics import Metrics
from service.settings import Settings, with_variables
from service.settings_text import variable_name
from service.start_up import StartUp, uncollected

if TYPE_CHECKING:  # the engine imports torch: seconds, spent behind the open listener
    from service.engine.async_engine import AsyncEngine
    from service.engine.config import EngineConfig
    from service.engine.engine import Engine
    from service.engine.observer import Observer

# Of the built-in model, libraries included. With less the system may end the process while it loads,
# without a word.
MIN_MEMORY_BYTES = 384 << 20


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """What is served: what was read of it so far, and its engine, which loads on a thread of its own."""

    entry: ModelEntry
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    engine: AsyncEngine


class Opening:
    """How a model comes to be served: it is found, what computes is imported, and its engine begins to load.

    Args:
        settings: name it.
        engine: used instead of one built from it.

    Attributes:
        metrics: what its engine reports to.
        began_at: by the monotonic clock.
    """

    def __init__(self, settings: Settings, engine: AsyncEngine | None = None) -> None:
        self.metrics = Metrics()
        self.began_at = time.monotonic()
        self._settings = settings
        self._engine = engine
        self._opened: Future[OpenedModel] = Future()

    def begin(self) -> None:
        """Do it, in this thread. What is wrong is told by `opened`."""
        try:
            self._opened.set_result(self._open())
        except BaseException as error:  # a panic of a library in Rust is no Exception
            self._opened.set_exception(error)

    def opened(self) -> OpenedModel:
        """The model; opens it, if that was not done.

        Raises:
            StoreError, SettingsError: it cannot be served, and why.
        """
        if not self._opened.done():
            self.begin()
        return self._opened.result()

    def _open(self) -> OpenedModel:
        settings, log = self._settings, get_logger()
        self.began_at = time.monotonic()
        log.info("loading", model=settings.model or "the default one")
        if (limit := memory_limit_bytes()) is not None and limit < MIN_MEMORY_BYTES:
            needed, given = MIN_MEMORY_BYTES >> 20, limit >> 20
            log.warning(f"memory is limited to {given} MiB; the smallest model needs {needed} MiB")
        entry = resolve(settings.model, settings.store)
        checkpoint = read_checkpoint(entry.path)
        for warning in (*entry.warnings, *checkpoint.warnings):
            log.warning(warning)
        tokenizer = Tokenizer.load(entry.path, checkpoint.architecture.vocab_size)
        engine = self._engine
        if engine is None:
            engine = make_engine(settings, self.metrics, entry.path, tokenizer, StartUp(num_steps=4))
        engine.begin()
        return OpenedModel(entry, checkpoint, tokenizer, engine)


def make_engine(
    settings: Settings, metrics: Metrics, folder: Path, tokenizer: Tokenizer, start_up: StartUp
) -> AsyncEngine:
    """An engine that loads when started, on a thread of its own, and tells `metrics` and `start_up` of it."""
    with start_up.step("importing"), uncollected():
        from service.engine import loader  # noqa: F401  brings torch
        from service.engine.async_engine import AsyncEngine

        config = engine_config(settings, folder)

        def fall_back(why: str) -> None:
            config.fall_back(why)
            metrics.gauges["textgen_kernel_fallback"] = 1.0

        told = replace(config, step=start_up.step, fall_back=fall_back)

    def make() -> Engine:
        engine = _build_engine(told, settings, tokenizer, metrics)
        metrics.levels = lambda: _levels(engine)
        return engine

    return AsyncEngine(make, config.max_running + settings.max_waiting)


def _build_engine(
    config: EngineConfig, settings: Settings, tokenizer: Tokenizer, observer: Observer | None = None
) -> Engine:
    """Load and warm up in this thread, with the draft model that the settings name.

    Raises:
        SettingsError: the model, or its draft model, cannot be served here.
    """
    from model_store.errors import UnsupportedCheckpoint
    from service.engine.loader import build_engine

    try:
        return build_engine(
            replace(config, draft_folder=_draft_folder(settings, tokenizer)),
            tokenizer,
            observer,
            on_fault=lambda error: get_logger().error("a step failed", exc_info=error),
        )
    except UnsupportedCheckpoint as error:
        raise SettingsError(f"the model cannot be served: {with_variables(str(error))}") from error


def _levels(engine: Engine) -> tuple[int, int, float]:
    """Running, waiting, share of KV blocks in use; aborts change them without a step that would tell."""
    scheduler = engine.scheduler
    used = 1 - scheduler.pool.num_free / scheduler.pool.num_blocks
    return len(scheduler.running), len(scheduler.waiting), used


def warm_up(settings: Settings) -> dict[str, str | int]:
    """Load the model and run its first steps in this thread, so that compiled kernels are in the cache.

    Returns:
        How the engine was built.

    Raises:
        SettingsError, StoreError: the model cannot be served.
    """
    entry = resolve(settings.model, settings.store)
    tokenizer = Tokenizer.load(entry.path, read_checkpoint(entry.path).architecture.vocab_size)
    engine = _build_engine(engine_config(settings, entry.path), settings, tokenizer)
    return {"model": entry.label, **engine.facts}


def engine_config(settings: Settings, folder: Path) -> EngineConfig:
    """What the engine is built from; settings that say `auto` are decided by the device or the engine.

    Raises:
        SettingsError: the device does not exist here.
    """
    from service.engine.config import EngineConfig
    from service.engine.devices import DEVICES, NoSuchDevice, find_device

    try:
        name = find_device(settings.device)
    except NoSuchDevice as error:
        raise SettingsError(with_variables(str(error))) from error
    for notice in settings.notices():
        get_logger().warning(notice)
    max_running = settings.max_running or DEVICES[name].max_running
    return EngineConfig(
        folder,
        device=name,
        precision=settings.precision,
        is_deterministic=settings.deterministic,
        kv_cache_bytes=settings.kv_cache_bytes or 0,
        # room for every running sequence and as many rows of prefill
        max_batch_tokens=settings.max_batch_tokens or max(DEVICES[name].max_batch_tokens, 2 * max_running),
        max_running=max_running,
        num_threads=settings.threads or 0,
        speculation=settings.speculation,
        report=get_logger().info,
        warn=get_logger().warning,
        fall_back=partial(_fall_back, settings),
    )


def _draft_folder(settings: Settings, tokenizer: Tokenizer) -> Path | None:
    """Where the draft model lies, if there is to be one.

    Args:
        settings: name it.
        tokenizer: the served model's; what the draft model guesses are its ids.

    Raises:
        SettingsError: nothing whole answers to that name, or its tokenizer is another one.
    """
    if not settings.draft_model:
        return None
    variable = variable_name("draft_model")
    try:
        entry = resolve(settings.draft_model, settings.store)
    except StoreError as error:
        raise SettingsError(f"{variable}: {error}") from error
    own = Tokenizer.load(entry.path, read_checkpoint(entry.path).architecture.vocab_size)
    if own.vocab_size != tokenizer.vocab_size or not own.is_same(tokenizer):
        raise SettingsError(
            f"{variable} has another vocabulary than the served model: it must have the same tokenizer"
        )
    return entry.path


def _fall_back(settings: Settings, why: str) -> None:
    """Say that torch computes, or refuse it. Raises SettingsError."""
    if not settings.kernel_fallback:
        raise SettingsError(f"TEXTGEN_KERNEL_FALLBACK=0 refuses to serve without them: {why}")
    get_logger().warning(why)
