"""How much memory there is, and what to say when there is not enough. Used by `loader`, at start only."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from service.engine.architecture import UnsupportedCheckpoint

_CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes(device: str) -> int:
    """Memory left on the device, or in the machine or container this process may use."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what loading left behind counts as free
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 4 << 30
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    left = left_in_container(_CGROUP)
    return free if left is None else min(free, left)


def left_in_container(cgroup: Path) -> int | None:
    """Bytes below the container's limit; None without one.

    Args:
        cgroup: where control groups are mounted: version 2, or version 1 with a folder `memory`.
    """
    if (cgroup / "memory").is_dir():
        folder, names = cgroup / "memory", ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
    else:
        folder, names = cgroup, ("max", "current", "inactive_file")
    limit, used, stat = (folder / f"memory.{name}" for name in (*names[:2], "stat"))
    if not limit.exists() or not used.exists() or not limit.read_text().strip().isdigit():
        return None
    counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
    cached = int(counts.get(names[2], 0))  # of files read, the model's too; given back when asked for
    return max(int(limit.read_text()) - int(used.read_text()) + cached, 0)


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
            f"out of memory at start: {free_memory_bytes('cpu') >> 20} MiB are left; free some, "
            "lower TEXTGEN_KV_CACHE_BYTES or TEXTGEN_MAX_RUNNING, or serve a smaller model"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Python, the system and torch each say it in their own way."""
    number = getattr(error, "errno", None)
    return isinstance(error, MemoryError) or number == errno.ENOMEM or "can't allocate memory" in str(error)
