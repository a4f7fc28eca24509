"""The process's one pool of kernel threads."""

from __future__ import annotations

import os

from service.engine.backends.cpu.threads import ThreadPool
from service.engine.container import usable_processors

_pool: ThreadPool | None = None


def set_threads(threads: int | None = None) -> int:
    """Use this many threads in all kernels from now on.

    Args:
        threads: at least 1; None means one for each processor that this process may keep busy.

    Returns:
        The number in use.
    """
    global _pool
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = threads or usable_processors()
    if _pool is None or _pool.threads != count:
        old, _pool = _pool, ThreadPool(count, processors if count == len(processors) > 1 else None)
        if old is not None:
            old.close()
    return count


def pool() -> ThreadPool:
    """The pool, made at first use."""
    if _pool is None:
        set_threads()
    assert _pool is not None
    return _pool


def close() -> None:
    """End the pool, before its kernels are compiled anew; the next use makes another one."""
    global _pool
    old, _pool = _pool, None
    if old is not None:
        old.close()
