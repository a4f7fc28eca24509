# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-overload"
"""Two (or n) cores in step: a pool of native threads, without Python or OpenMP inside.

One task runs at a time: a kernel `(args, pool, thread)`. A forward pass is one task, made of phases:
threads take pieces of a phase by `claim` and end it by `meet`. **A phase ends when its pieces are done, not
when every thread has come**: on a busy machine a thread that is not running, and holds no piece, is waited
for by nobody. One word, `P_STATE`, holds the number of the phase and the pieces taken, so that a latecomer
can take nothing of a phase that it is not in; it walks through the phases it missed.

A thread that waits in vain for some microseconds sleeps in the kernel: workers outside the task, the caller
inside. The caller returns when all workers have left the task, so its memory need not outlive the call.
`threads.ThreadPool` owns the cells, whose offsets are `P_*`.
"""

from __future__ import annotations

import os

from numba.core import types

from service.engine.backends.cpu.native.atomics import (
    atomic_add,
    atomic_load,
    atomic_store,
    compare_swap,
    pause,
)
from service.engine.backends.cpu.native.functions import kernel, native
from service.engine.backends.cpu.native.scalars import invoker, load_long, store_long
from service.engine.backends.cpu.records import (
    P_ARGS,
    P_CONDITION,
    P_COUNT,
    P_DONE,
    P_FIRST_PHASE,
    P_FREE_MASK,
    P_INSIDE,
    P_IS_CLOSED,
    P_IS_OPEN,
    P_MASK,
    P_MASK_BYTES,
    P_MUTEX,
    P_OWN,
    P_OWN_BYTES,
    P_OWN_PHASE,
    P_OWN_TAKEN,
    P_OWN_TOTAL,
    P_PINS,
    P_SLEEPERS,
    P_STATE,
    P_TASK,
)

_I = types.int64
_PHASE_SHIFT, _SIDE_SHIFT, _PIECES = 40, 20, (1 << 20) - 1  # phase | taken from the back | from the front
_PHASES = (1 << 24) - 1  # numbers wrap; threads inside are never so far apart
_AWAY = -1  # the phase of a thread that only walks to the end of the task
_SPIN = 2000  # pauses, some 30 us, before a waiting thread sleeps

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


@native
def _own(pool, thread):
    return pool + P_OWN + P_OWN_BYTES * thread


@native
def _phase_of(word):
    return (word >> _PHASE_SHIFT) & _PHASES


@native
def claim(pool, thread, total):
    """The next piece of this phase, below `total`; `total` if there is none for this thread.

    Threads of even number take from the front and the others from the back: two threads each read memory in
    one direction, and know where they will begin.

    Args:
        total: how many pieces the phase has, the same at every claim; below 2**20.
    """
    own = _own(pool, thread)
    store_long(own + P_OWN_TOTAL, total)
    phase, is_back = load_long(own + P_OWN_PHASE), thread & 1
    word = atomic_load(pool + P_STATE)
    while _phase_of(word) == phase:
        front, back = word & _PIECES, (word >> _SIDE_SHIFT) & _PIECES
        if front + back >= total:
            break
        seen = compare_swap(pool + P_STATE, word, word + (1 << _SIDE_SHIFT if is_back else 1))
        if seen == word:
            store_long(own + P_OWN_TAKEN, load_long(own + P_OWN_TAKEN) + 1)
            return total - 1 - back if is_back else front
        word = seen
    return total


@native
def meet(pool, thread):
    """End the phase: whatever its pieces wrote is there afterwards, and claims begin anew."""
    own = _own(pool, thread)
    phase, total, taken = (
        load_long(own + P_OWN_PHASE),
        load_long(own + P_OWN_TOTAL),
        load_long(own + P_OWN_TAKEN),
    )
    store_long(own + P_OWN_TAKEN, 0)
    if phase == _AWAY or total == 0:
        return
    if taken != 0 and atomic_add(pool + P_DONE, taken) + taken == total:
        _advance(pool)
    elif not _awaits(pool, phase, thread == 0):
        store_long(own + P_OWN_PHASE, _AWAY)
        return
    store_long(own + P_OWN_PHASE, (phase + 1) & _PHASES)


@native
def _advance(pool):
    """Begin the next phase; only one thread is here, and no piece is out."""
    atomic_store(pool + P_DONE, 0)
    phase = (_phase_of(atomic_load(pool + P_STATE)) + 1) & _PHASES
    atomic_store(pool + P_STATE, phase << _PHASE_SHIFT)
    if load_long(pool + P_COUNT) > 1 and atomic_load(pool + P_SLEEPERS) > 0:
        _lock(pool + P_MUTEX)
        _wake_all(pool + P_CONDITION)
        _unlock(pool + P_MUTEX)


@native
def _awaits(pool, phase, may_sleep):
    """Whether the phase ended while this thread waited; always, if it may sleep."""
    for _ in range(_SPIN):
        if _phase_of(atomic_load(pool + P_STATE)) != phase:
            return True
        pause()
    if may_sleep:
        _sleep(pool, phase)
    return may_sleep


@native
def _sleep(pool, phase):
    """Until a phase begins, or the pool closes; with spurious ends."""
    _lock(pool + P_MUTEX)
    atomic_add(pool + P_SLEEPERS, 1)
    while _phase_of(atomic_load(pool + P_STATE)) == phase and atomic_load(pool + P_IS_CLOSED) == 0:
        _wait(pool + P_CONDITION, pool + P_MUTEX)
    atomic_add(pool + P_SLEEPERS, -1)
    _unlock(pool + P_MUTEX)


@native
def _take_part(pool, thread):
    """Do what is left of the running task; whether there was one for this thread."""
    atomic_add(pool + P_INSIDE, 1)
    wanted = atomic_load(pool + P_IS_OPEN) != 0 and thread < load_long(pool + P_COUNT)
    if wanted:
        own = _own(pool, thread)
        store_long(own + P_OWN_PHASE, load_long(pool + P_FIRST_PHASE))
        store_long(own + P_OWN_TAKEN, 0)
        _invoke(load_long(pool + P_TASK), load_long(pool + P_ARGS), pool, thread)
    atomic_add(pool + P_INSIDE, -1)
    return wanted


@kernel
def work(pool, thread):
    """What a thread of the pool does all its life: its part of each task; in between it spins, then sleeps.

    Args:
        pool: its address, see `records`.
        thread: its number, from 1 on; 0 is whoever calls `run`.
    """
    idle, seen = 0, -1
    while atomic_load(pool + P_IS_CLOSED) == 0:
        phase = _phase_of(atomic_load(pool + P_STATE))
        if phase != seen:
            seen = phase  # read before the work: a phase that begins meanwhile is noticed
            if _take_part(pool, thread):
                idle = 0
        elif idle < _SPIN:
            idle += 1
            pause()
        else:
            _sleep(pool, seen)


@native
def _stay_on(pool, mask):
    if _CAN_PIN and load_long(pool + P_PINS) != 0:
        _set_affinity(0, pool + mask, P_MASK_BYTES)


@native
def _wait_for_workers(pool):
    spins = 0
    while atomic_load(pool + P_INSIDE) != 0:
        pause()
        spins += 1
        if spins % _SPIN == 0:
            _yield()


@kernel
def run(pool, task, args, threads):
    """Do a task with so many threads, the caller's among them; it is done when this returns.

    Args:
        pool: its address.
        task: address of a function of (args, pool, thread), which claims pieces and meets.
        args: what the task is given: one integer, an address mostly.
        threads: at least 1, at most as many as the pool has.
    """
    own, is_shared = _own(pool, 0), threads > 1
    if is_shared:
        _stay_on(pool, P_MASK)
    store_long(pool + P_TASK, task)
    store_long(pool + P_ARGS, args)
    store_long(pool + P_COUNT, threads)
    first = (_phase_of(atomic_load(pool + P_STATE)) + 1) & _PHASES
    store_long(pool + P_FIRST_PHASE, first)
    store_long(own + P_OWN_PHASE, first)
    store_long(own + P_OWN_TAKEN, 0)
    atomic_store(pool + P_IS_OPEN, is_shared)
    _advance(pool)
    _invoke(task, args, pool, 0)
    if is_shared:
        atomic_store(pool + P_IS_OPEN, 0)
        _wait_for_workers(pool)
        _stay_on(pool, P_FREE_MASK)


@kernel
def initialise(pool):
    """Make a new pool's lock and condition, before its threads start."""
    _init_lock(pool + P_MUTEX, 0)
    _init_condition(pool + P_CONDITION, 0)


@kernel
def close(pool):
    """Let the threads of `work` return; nothing may run any more."""
    _lock(pool + P_MUTEX)
    atomic_store(pool + P_IS_CLOSED, 1)
    _wake_all(pool + P_CONDITION)
    _unlock(pool + P_MUTEX)
