"""Two (or n) cores in step: a pool of native threads that runs one task at a time, without Python or OpenMP inside.

A task is a compiled `void(args, pool, thread)`; all threads enter it together, take work by `claim`, and wait for
each other by `meet`. A forward pass is one task, so threads are woken once per step, not once per layer. Workers
spin for some microseconds after a task and then sleep in the kernel: an idle service uses no processor time. The
memory of the pool is one int64 array; the constants below name its cells, 64 bytes apart.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit
from numba.core import types

from service.engine.kernels import vectors as vec
from service.engine.kernels.cache import CACHE

_I = types.int64
_GENERATION, _TASK, _ARGS, _COUNT = 0, 64, 72, 80
_DONE, _SLEEPERS, _ARRIVED, _PHASE, _CLAIMED = 128, 192, 256, 320, 384
_MUTEX, _CONDITION, _BYTES = 512, 768, 1024  # room for any platform's pthread types
_SPIN_IDLE = 2000  # pauses (some 30 us) before a worker sleeps: longer than the gap between two calls of one step
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


@vec._intrinsic(_I, _I)
def atomic_load(builder: Any, address: Any) -> Any:
    """One int64, with everything written before it."""
    return builder.load_atomic(vec.pointer(builder, address, vec.I64), "seq_cst", 8)


@vec._intrinsic(types.void, _I, _I)
def atomic_store(builder: Any, address: Any, value: Any) -> None:
    """One int64, after everything written before it."""
    builder.store_atomic(value, vec.pointer(builder, address, vec.I64), "seq_cst", 8)


@vec._intrinsic(_I, _I, _I)
def atomic_add(builder: Any, address: Any, value: Any) -> Any:
    """Add and give the old value."""
    return builder.atomic_rmw("add", vec.pointer(builder, address, vec.I64), value, "seq_cst")


@vec._intrinsic(types.void)
def pause(builder: Any) -> None:
    """Tell the processor that this is a waiting loop."""
    if vec.IS_X86:
        vec.call(builder, "llvm.x86.sse2.pause", ir.VoidType())


@vec._intrinsic(types.void, _I, _I, _I, _I)
def _invoke(builder: Any, task: Any, args: Any, pool: Any, thread: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [vec.I64] * 3)
    builder.call(builder.inttoptr(task, ir.PointerType(kind)), [args, pool, thread])


@njit
def num_threads(pool):  # type: ignore[no-untyped-def]
    """Threads that take part in the running task."""
    return vec.load_long(pool + _COUNT)


@njit
def claim(pool):  # type: ignore[no-untyped-def]
    """The next piece of work of this phase: 0, 1, 2, …"""
    return atomic_add(pool + _CLAIMED, 1)


@njit
def meet(pool):  # type: ignore[no-untyped-def]
    """Wait until every thread is here; then claims start at 0 again."""
    phase = atomic_load(pool + _PHASE)
    if atomic_add(pool + _ARRIVED, 1) == num_threads(pool) - 1:
        atomic_store(pool + _ARRIVED, 0)
        atomic_store(pool + _CLAIMED, 0)
        atomic_store(pool + _PHASE, phase + 1)
    else:
        _spin_while(pool + _PHASE, phase)


@njit
def _spin_while(address, value):  # type: ignore[no-untyped-def]
    spins = 0
    while atomic_load(address) == value:
        pause()
        spins += 1
        if spins % _SPIN_MEET == 0:
            _yield()


@njit
def _next_task(pool, seen):  # type: ignore[no-untyped-def]
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
def _worker(pool, thread):  # type: ignore[no-untyped-def]
    seen = 0
    while True:
        seen = _next_task(pool, seen)
        task = vec.load_long(pool + _TASK)
        if task == 0:
            return
        _invoke(task, vec.load_long(pool + _ARGS), pool, thread)
        atomic_add(pool + _DONE, 1)


@cfunc(types.void(_I, _I, _I), cache=CACHE)
def _run(pool, task, args):  # type: ignore[no-untyped-def]
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


@cfunc(types.void(_I), cache=CACHE)
def _initialise(pool):  # type: ignore[no-untyped-def]
    _init_lock(pool + _MUTEX, 0)
    _init_condition(pool + _CONDITION, 0)


class ThreadPool:
    """The threads that run compiled tasks; the caller of `run` is thread 0. Not for use from two threads at once.

    Args:
        threads: how many take part, the caller included; at least 1.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.threads = threads
        self._memory = np.zeros(_BYTES // 8 + 8, np.int64)
        self.address = int(self._memory.ctypes.data + 63) // 64 * 64
        self._memory[(self.address + _COUNT - self._memory.ctypes.data) // 8] = threads
        self._call = _run.ctypes
        _initialise.ctypes(self.address)
        for thread in range(1, threads):
            threading.Thread(
                target=_worker.ctypes, args=(self.address, thread), name=f"kernel-{thread}", daemon=True
            ).start()

    def run(self, task: int, args: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Run one task to its end, with the GIL released.

        Args:
            task: address of a compiled TASK.
            args: its argument block.
        """
        self._call(self.address, task, args.ctypes.data)

    def close(self) -> None:
        """End the workers."""
        self._call(self.address, 0, 0)
