# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-overload"
"""Two (or n) cores in step: a pool of native threads, without Python or OpenMP inside.

One task runs at a time: a compiled `void(args, pool, thread)`; all threads enter it together, take work by
`claim`, and wait for each other by `meet`. A forward pass is one task, so threads are woken once per step,
not once per layer. Workers spin for some microseconds after a task and then sleep in the kernel: an idle
service uses no processor time. Where the pool has every processor to itself, each thread stays on its own
(two of them woken on one core take turns for milliseconds); the caller only while a task runs. The pool's
memory is one int64 array; the constants name its cells.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit
from numba.core import types

from service.engine.kernels import emit
from service.engine.kernels import vectors as vec
from service.engine.kernels.cache import CACHE

_I = types.int64
_GENERATION, _TASK, _ARGS, _COUNT = 0, 64, 72, 80
_DONE, _SLEEPERS, _ARRIVED, _PHASE, _CLAIMED = 128, 192, 256, 320, 384
_PINS, _MASK, _FREE_MASK, _MASK_BYTES = (
    448,
    1024,
    1152,
    128,
)  # processor sets of the caller: within a task, outside
_MUTEX, _CONDITION, _BYTES = 512, 768, 1280  # room for any platform's pthread types
_SPIN_IDLE = (
    2000  # pauses (some 30 us) before a worker sleeps: longer than the gap between two calls of one step
)
_SPIN_MEET = 4000  # pauses before a waiting thread lets others have the core

TASK = types.void(_I, _I, _I)
_pthread = types.ExternalFunction
_lock = _pthread("pthread_mutex_lock", types.int32(_I))
_unlock = _pthread("pthread_mutex_unlock", types.int32(_I))
_wait = _pthread("pthread_cond_wait", types.int32(_I, _I))
_wake_all = _pthread("pthread_cond_broadcast", types.int32(_I))
_init_lock = _pthread("pthread_mutex_init", types.int32(_I, _I))
_init_condition = _pthread("pthread_cond_init", types.int32(_I, _I))
_yield = _pthread("sched_yield", types.int32())
_set_affinity = _pthread("sched_setaffinity", types.int32(types.int32, _I, _I))
_CAN_PIN = hasattr(os, "sched_setaffinity")


@vec.numba_intrinsic(_I, _I)
def atomic_load(builder: Any, address: Any) -> Any:
    """One int64, with everything written before it."""
    return builder.load_atomic(emit.pointer(builder, address, emit.I64), "seq_cst", 8)


@vec.numba_intrinsic(types.void, _I, _I)
def atomic_store(builder: Any, address: Any, value: Any) -> None:
    """One int64, after everything written before it."""
    builder.store_atomic(value, emit.pointer(builder, address, emit.I64), "seq_cst", 8)


@vec.numba_intrinsic(_I, _I, _I)
def atomic_add(builder: Any, address: Any, value: Any) -> Any:
    """Add and give the old value."""
    return builder.atomic_rmw("add", emit.pointer(builder, address, emit.I64), value, "seq_cst")


@vec.numba_intrinsic(types.void)
def pause(builder: Any) -> None:
    """Tell the processor that this is a waiting loop."""
    if emit.IS_X86:
        emit.call(builder, "llvm.x86.sse2.pause", ir.VoidType())


_invoke = vec.invoker(3)


@njit
def num_threads(pool):
    """Threads that take part in the running task."""
    return vec.load_long(pool + _COUNT)


@njit
def claim(pool):
    """The next piece of work of this phase: 0, 1, 2, …"""
    return atomic_add(pool + _CLAIMED, 1)


@njit
def meet(pool):
    """Wait until every thread is here; then claims start at 0 again."""
    phase = atomic_load(pool + _PHASE)
    if atomic_add(pool + _ARRIVED, 1) == num_threads(pool) - 1:
        atomic_store(pool + _ARRIVED, 0)
        atomic_store(pool + _CLAIMED, 0)
        atomic_store(pool + _PHASE, phase + 1)
    else:
        _spin_while(pool + _PHASE, phase)


@njit
def _spin_while(address, value):
    spins = 0
    while atomic_load(address) == value:
        pause()
        spins += 1
        if spins % _SPIN_MEET == 0:
            _yield()


@njit
def _next_task(pool, seen):
    for _ in range(_SPIN_IDLE):
        if atomic_load(pool + _GENERATION) != seen:
            return atomic_load(pool + _GENERATION)
        pause()
    _lock(pool + _MUTEX)
    atomic_add(pool + _SLEEPERS, 1)
    while atomic_load(pool + _GENERATION) == seen:
        _wait(pool + _CONDITION, pool + _MUTEX)
    atomic_add(pool + _SLEEPERS, -1)
    _unlock(pool + _MUTEX)
    return atomic_load(pool + _GENERATION)


@cfunc(types.void(_I, _I), cache=CACHE)
def _worker(pool, thread):
    seen = 0
    while True:
        seen = _next_task(pool, seen)
        task = vec.load_long(pool + _TASK)
        if task == 0:
            return
        _invoke(task, vec.load_long(pool + _ARGS), pool, thread)
        atomic_add(pool + _DONE, 1)


@njit
def _stay_on(pool, mask):
    if _CAN_PIN and vec.load_long(pool + _PINS) != 0:
        _set_affinity(0, pool + mask, _MASK_BYTES)


@cfunc(types.void(_I, _I, _I), cache=CACHE)
def _run(pool, task, args):
    _stay_on(pool, _MASK)
    others = num_threads(pool) - 1
    vec.store_long(pool + _TASK, task)
    vec.store_long(pool + _ARGS, args)
    atomic_store(pool + _DONE, 0)
    atomic_store(pool + _CLAIMED, 0)
    if others > 0:
        _lock(pool + _MUTEX)
        atomic_add(pool + _GENERATION, 1)
        if atomic_load(pool + _SLEEPERS) > 0:
            _wake_all(pool + _CONDITION)
        _unlock(pool + _MUTEX)
    if task != 0:
        _invoke(task, args, pool, 0)
        spins = 0
        while atomic_load(pool + _DONE) < others:
            pause()
            spins += 1
            if spins % _SPIN_MEET == 0:
                _yield()
    _stay_on(pool, _FREE_MASK)


@cfunc(types.void(_I), cache=CACHE)
def _initialise(pool):
    _init_lock(pool + _MUTEX, 0)
    _init_condition(pool + _CONDITION, 0)


class ThreadPool:
    """The threads that run compiled tasks; the caller of `run`, one at a time, is thread 0.

    Args:
        threads: how many take part, the caller included; at least 1.
        processors: one for each thread to stay on, or None to leave that to the system.
    """

    def __init__(self, threads: int, processors: Sequence[int] | None = None) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.threads = threads
        self.is_pinned = _CAN_PIN and processors is not None and max(processors) < 8 * _MASK_BYTES
        self._memory = np.zeros(_BYTES + 64, np.uint8)
        start = -self._memory.ctypes.data % 64
        self.address = int(self._memory.ctypes.data + start)
        cells = self._memory[start : start + _BYTES]
        cells.view(np.int64)[[_COUNT // 8, _PINS // 8]] = threads, self.is_pinned
        if self.is_pinned and processors is not None:
            cells[_MASK : _MASK + _MASK_BYTES] = _mask_of({processors[0]})
            cells[_FREE_MASK : _FREE_MASK + _MASK_BYTES] = _mask_of(os.sched_getaffinity(0))
        self._call = _run.ctypes
        _initialise.ctypes(self.address)
        self._workers = [
            threading.Thread(
                target=_work,
                args=(self.address, thread, processors[thread] if self.is_pinned and processors else None),
                name=f"kernel-{thread}",
                daemon=True,
            )
            for thread in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()

    def run(self, task: int, args: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Run one task to its end, with the GIL released.

        Args:
            task: address of a compiled TASK.
            args: its argument block.
        """
        self._call(self.address, task, args.ctypes.data)

    def close(self) -> None:
        """End the workers; they read this object's memory until then."""
        self._call(self.address, 0, 0)
        for worker in self._workers:
            worker.join()


def _work(pool: int, thread: int, processor: int | None) -> None:
    if processor is not None:
        os.sched_setaffinity(0, {processor})  # of this thread only
    _worker.ctypes(pool, thread)


def _mask_of(processors: set[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    bits = np.zeros(8 * _MASK_BYTES, np.uint8)
    bits[[p for p in processors if p < len(bits)]] = 1
    return np.packbits(bits, bitorder="little")
