"""How much memory is left, giving some back, and what to say when it is not enough. Used at start only."""

from __future__ import annotations

import ctypes
import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import UnsupportedCheckpoint
from service.engine.container import memory_left_bytes

_WORDS = ("can't allocate memory", "Cannot allocate memory", "failed to map segment")
_LIMITS = (("AS", "VmSize", "of address space (`ulimit -v`)"), ("DATA", "VmData", "of data (`ulimit -d`)"))


def free_host_bytes() -> int:
    """Memory that this process may still take, of the machine's and below each limit."""
    return _scarcest()[0]


def out_of_memory_line() -> str:
    """What to tell people: how much is left, of what, and what helps."""
    left_bytes, of_what, remedy = _scarcest()
    return (
        f"out of memory at start: {left_bytes >> 20} MiB are left {of_what}; {remedy}, "
        "lower `kv_cache_bytes` or `max_running`, or serve a smaller model"
    )


def _scarcest() -> tuple[int, str, str]:
    """Bytes left of what there is least of, its name, and what to do about it."""
    if not Path("/proc/meminfo").exists():
        return 4 << 30, "in the machine, perhaps", "free some"
    kib = {**_fields(Path("/proc/meminfo")), **_fields(Path("/proc/self/status"))}
    limits = [(kib["MemAvailable"] << 10, "in the machine", "free some")]
    if (left_bytes := memory_left_bytes()) is not None:
        limits.append((left_bytes, "below the limit of the container or unit", "raise it"))
    for name, used, what in _LIMITS:
        limit, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        if limit != resource.RLIM_INFINITY:
            left_bytes = max(limit - (kib[used] << 10), 0)
            limits.append((left_bytes, f"below this process's limit {what}", "raise it"))
    return min(limits)


def _fields(file: Path) -> dict[str, int]:
    """The figures of a file of `/proc` that are in kB."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


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
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnsupportedCheckpoint(out_of_memory_line()) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Python, the system, its linker, torch and safetensors each say it in their own way."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return any(words in str(error) for words in _WORDS)
