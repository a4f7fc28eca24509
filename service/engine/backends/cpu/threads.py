"""The pool of native threads that kernels run on; `native.team` says how they keep in step.

`ThreadPool` owns the memory where they meet, whose cells are `records.P_*`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from service.engine.backends.cpu import kernels
from service.engine.backends.cpu.records import (
    P_FREE_MASK,
    P_MASK,
    P_MASK_BYTES,
    P_OWN,
    P_OWN_BYTES,
    P_PINS,
)

_CAN_PIN = hasattr(os, "sched_setaffinity")


def _kernel(name: str, num_args: int) -> Callable[..., None]:
    """A kernel as a function of Python, which lets other threads run meanwhile."""
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * num_args)
    return kind(kernels.address(name))


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
        self.is_pinned = _CAN_PIN and processors is not None and max(processors) < 8 * P_MASK_BYTES
        size = P_OWN + P_OWN_BYTES * threads
        self._memory = np.zeros(size + 64, np.uint8)
        start = -self._memory.ctypes.data % 64
        self.address = int(self._memory.ctypes.data + start)
        cells = self._memory[start : start + size]
        if self.is_pinned and processors is not None:
            cells.view(np.int64)[P_PINS // 8] = 1
            cells[P_MASK : P_MASK + P_MASK_BYTES] = _mask_of({processors[0]})
            cells[P_FREE_MASK : P_FREE_MASK + P_MASK_BYTES] = _mask_of(os.sched_getaffinity(0))
        self._call = _kernel("run", 4)
        self._turn = threading.Lock()
        _kernel("initialise", 1)(self.address)
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
            task: address of a kernel `(args, pool, thread)`; `meet` ends each of its phases, the last, too.
            args: its argument block.
            threads: how many may take part; None for all.
        """
        with self._turn:
            self._call(self.address, task, args.ctypes.data, min(threads or self.threads, self.threads))

    def close(self) -> None:
        """End the workers, once no task runs; they read this object's memory until then."""
        with self._turn:
            _kernel("close", 1)(self.address)
        for worker in self._workers:
            worker.join()


def _work(pool: int, thread: int, processor: int | None) -> None:
    if processor is not None:
        os.sched_setaffinity(0, {processor})  # of this thread only
    _kernel("work", 2)(pool, thread)


def _mask_of(processors: set[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    bits = np.zeros(8 * P_MASK_BYTES, np.uint8)
    bits[[p for p in processors if p < len(bits)]] = 1
    return np.packbits(bits, bitorder="little")
