# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-overload"
"""Two (or n) cores in step: a pool of native threads, without Python or OpenMP inside.

One task runs at a time: a compiled `void(args, pool, thread)`. A forward pass is one task, made of phases:
threads take pieces of a phase by `claim` and end it by `meet`. **A phase ends when its pieces are done, not
when every thread has come**: on a busy machine a thread that is not running, and holds no piece, is waited
for by nobody. One word, `_STATE`, holds the number of the phase and the pieces taken, so that a latecomer
can take nothing of a phase that it is not in; it walks through the phases it missed.

A thread that waits in vain for some microseconds sleeps in the kernel: workers outside the task, the caller
inside. The caller returns when all workers have left the task, so its memory need not outlive the call.
`ThreadPool` owns the cells; the constants name their offsets.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cfunc, njit
from numba.core import types

from service.engine.backends.cpu.atomics import atomic_add, atomic_load, atomic_store, compare_swap, pause
from service.engine.backends.cpu.cache import CACHE
from service.engine.backends.cpu.scalars import invoker, load_long, store_long

_I = types.int64
_TASK, _ARGS, _COUNT, _FIRST_PHASE, _PINS = 0, 8, 16, 24, 32  # written between tasks
_STATE, _DONE, _IS_OPEN, _INSIDE, _SLEEPERS, _IS_CLOSED = range(64, 448, 64)  # each on a line of its own
_MUTEX, _CONDITION = 512, 768  # room for any platform's pthread types
_MASK, _FREE_MASK, _MASK_BYTES = 1024, 1152, 128  # processor sets of the caller: within a task, outside
_OWN, _OWN_BYTES = 1280, 64  # per thread: the cells below
_PHASE, _TOTAL, _TAKEN = 0, 8, 16
_PHASE_SHIFT, _SIDE_SHIFT, _PIECES = 40, 20, (1 << 20) - 1  # phase | taken from the back | from the front
_PHASES = (1 << 24) - 1  # numbers wrap; threads inside are never so far apart
_AWAY = -1  # the phase of a thread that only walks to the end of the task
_SPIN = 2000  # pauses, some 30 us, before a waiting thread sleeps

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
_invoke = invoker(3)


@njit
def _own(pool, thread):
    return pool + _OWN + _OWN_BYTES * thread


@njit
def _phase_of(word):
    return (word >> _PHASE_SHIFT) & _PHASES


@njit
def claim(pool, thread, total):
    """The next piece of this phase, below `total`; `total` if there is none for this thread.

    Threads of even number take from the front and the others from the back: two threads each read memory in
    one direction, and know where they will begin.

    Args:
        total: how many pieces the phase has, the same at every claim; below 2**20.
    """
    own = _own(pool, thread)
    store_long(own + _TOTAL, total)
    phase, is_back = load_long(own + _PHASE), thread & 1
    word = atomic_load(pool + _STATE)
    while _phase_of(word) == phase:
        front, back = word & _PIECES, (word >> _SIDE_SHIFT) & _PIECES
        if front + back >= total:
            break
        seen = compare_swap(pool + _STATE, word, word + (1 << _SIDE_SHIFT if is_back else 1))
        if seen == word:
            store_long(own + _TAKEN, load_long(own + _TAKEN) + 1)
            return total - 1 - back if is_back else front
        word = seen
    return total


@njit
def meet(pool, thread):
    """End the phase: whatever its pieces wrote is there afterwards, and claims begin anew."""
    own = _own(pool, thread)
    phase, total, taken = (
        load_long(own + _PHASE),
        load_long(own + _TOTAL),
        load_long(own + _TAKEN),
    )
    store_long(own + _TAKEN, 0)
    if phase == _AWAY or total == 0:
        return
    if taken != 0 and atomic_add(pool + _DONE, taken) + taken == total:
        _advance(pool)
    elif not _awaits(pool, phase, thread == 0):
        store_long(own + _PHASE, _AWAY)
        return
    store_long(own + _PHASE, (phase + 1) & _PHASES)


@njit
def _advance(pool):
    """Begin the next phase; only one thread is here, and no piece is out."""
    atomic_store(pool + _DONE, 0)
    phase = (_phase_of(atomic_load(pool + _STATE)) + 1) & _PHASES
    atomic_store(pool + _STATE, phase << _PHASE_SHIFT)
    if load_long(pool + _COUNT) > 1 and atomic_load(pool + _SLEEPERS) > 0:
        _lock(pool + _MUTEX)
        _wake_all(pool + _CONDITION)
        _unlock(pool + _MUTEX)


@njit
def _awaits(pool, phase, may_sleep):
    """Whether the phase ended while this thread waited; always, if it may sleep."""
    for _ in range(_SPIN):
        if _phase_of(atomic_load(pool + _STATE)) != phase:
            return True
        pause()
    if may_sleep:
        _sleep(pool, phase)
    return may_sleep


@njit
def _sleep(pool, phase):
    """Until a phase begins, or the pool closes; with spurious ends."""
    _lock(pool + _MUTEX)
    atomic_add(pool + _SLEEPERS, 1)
    while _phase_of(atomic_load(pool + _STATE)) == phase and atomic_load(pool + _IS_CLOSED) == 0:
        _wait(pool + _CONDITION, pool + _MUTEX)
    atomic_add(pool + _SLEEPERS, -1)
    _unlock(pool + _MUTEX)


@njit
def _take_part(pool, thread):
    """Do what is left of the running task; whether there was one for this thread."""
    atomic_add(pool + _INSIDE, 1)
    wanted = atomic_load(pool + _IS_OPEN) != 0 and thread < load_long(pool + _COUNT)
    if wanted:
        own = _own(pool, thread)
        store_long(own + _PHASE, load_long(pool + _FIRST_PHASE))
        store_long(own + _TAKEN, 0)
        _invoke(load_long(pool + _TASK), load_long(pool + _ARGS), pool, thread)
    atomic_add(pool + _INSIDE, -1)
    return wanted


@cfunc(types.void(_I, _I), cache=CACHE)
def _worker(pool, thread):
    idle, seen = 0, -1
    while atomic_load(pool + _IS_CLOSED) == 0:
        phase = _phase_of(atomic_load(pool + _STATE))
        if phase != seen:
            seen = phase  # read before the work: a phase that begins meanwhile is noticed
            if _take_part(pool, thread):
                idle = 0
        elif idle < _SPIN:
            idle += 1
            pause()
        else:
            _sleep(pool, seen)


@njit
def _stay_on(pool, mask):
    if _CAN_PIN and load_long(pool + _PINS) != 0:
        _set_affinity(0, pool + mask, _MASK_BYTES)


@njit
def _wait_for_workers(pool):
    spins = 0
    while atomic_load(pool + _INSIDE) != 0:
        pause()
        spins += 1
        if spins % _SPIN == 0:
            _yield()


@cfunc(types.void(_I, _I, _I, _I), cache=CACHE)
def _run(pool, task, args, threads):
    own, is_shared = _own(pool, 0), threads > 1
    if is_shared:
        _stay_on(pool, _MASK)
    store_long(pool + _TASK, task)
    store_long(pool + _ARGS, args)
    store_long(pool + _COUNT, threads)
    first = (_phase_of(atomic_load(pool + _STATE)) + 1) & _PHASES
    store_long(pool + _FIRST_PHASE, first)
    store_long(own + _PHASE, first)
    store_long(own + _TAKEN, 0)
    atomic_store(pool + _IS_OPEN, is_shared)
    _advance(pool)
    _invoke(task, args, pool, 0)
    if is_shared:
        atomic_store(pool + _IS_OPEN, 0)
        _wait_for_workers(pool)
        _stay_on(pool, _FREE_MASK)


@cfunc(types.void(_I), cache=CACHE)
def _initialise(pool):
    _init_lock(pool + _MUTEX, 0)
    _init_condition(pool + _CONDITION, 0)


@cfunc(types.void(_I), cache=CACHE)
def _close(pool):
    _lock(pool + _MUTEX)
    atomic_store(pool + _IS_CLOSED, 1)
    _wake_all(pool + _CONDITION)
    _unlock(pool + _MUTEX)


class ThreadPool:
    """The threads that run compiled tasks; the caller of `run` is thread 0, other callers wait.

    Args:
        threads: how many there are, the caller included; at least 1.
        processors: one for each thread to stay on, or None to leave that to the system.
    """

    def __init__(self, threads: int, processors: Sequence[int] | None = None) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.threads = threads
        self.is_pinned = _CAN_PIN and processors is not None and max(processors) < 8 * _MASK_BYTES
        size = _OWN + _OWN_BYTES * threads
        self._memory = np.zeros(size + 64, np.uint8)
        start = -self._memory.ctypes.data % 64
        self.address = int(self._memory.ctypes.data + start)
        cells = self._memory[start : start + size]
        if self.is_pinned and processors is not None:
            cells.view(np.int64)[_PINS // 8] = 1
            cells[_MASK : _MASK + _MASK_BYTES] = _mask_of({processors[0]})
            cells[_FREE_MASK : _FREE_MASK + _MASK_BYTES] = _mask_of(os.sched_getaffinity(0))
        self._call = _run.ctypes
        self._turn = threading.Lock()
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

    def run(self, task: int, args: np.ndarray[Any, np.dtype[np.int64]], threads: int | None = None) -> None:
        """Run one task to its end, with the GIL released.

        Args:
            task: address of a compiled TASK; each of its phases ends with `meet`, the last one, too.
            args: its argument block.
            threads: how many may take part; None for all.
        """
        with self._turn:
            self._call(self.address, task, args.ctypes.data, min(threads or self.threads, self.threads))

    def close(self) -> None:
        """End the workers, once no task runs; they read this object's memory until then."""
        with self._turn:
            _close.ctypes(self.address)
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
