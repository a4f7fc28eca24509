"""How much memory is left, giving some back, and what to say when it is not enough. Used at start only."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import UnsupportedCheckpoint
from service.engine.container import memory_left_bytes


def free_host_bytes() -> int:
    """Memory left in the machine, or in the container that this process may use."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 4 << 30
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    left = memory_left_bytes()
    return free if left is None else min(free, left)


def give_back_free_memory() -> None:
    """Let the C library return what lies free in its heap, where it knows how (glibc's `malloc_trim`).

    Packing leaves a hole of megabytes beside each layer's small arrays, which nothing fills later.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def one_line_without_host_memory() -> Iterator[None]:
    """Turn running out of the machine's memory at start into one line that says what to do.

    Raises:
        UnsupportedCheckpoint: the memory does not suffice.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise UnsupportedCheckpoint(
            f"out of memory at start: {free_host_bytes() >> 20} MiB are left; free some, "
            "lower `kv_cache_bytes` or `max_running`, or serve a smaller model"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Python, the system and torch each say it in their own way."""
    number = getattr(error, "errno", None)
    return isinstance(error, MemoryError) or number == errno.ENOMEM or "can't allocate memory" in str(error)
