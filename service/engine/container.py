"""What the control group that this process runs in (a container, a systemd unit) allows it.

Linux only; elsewhere nothing is limited. Version 2 of control groups has one tree, version 1 one for each
controller. A process finds its own group under its path in `/proc/self/cgroup` or, in a container with a view
of its own, at the root; each group above may limit it further.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> float | None:
    """Processors' worth of time that the process may use, as 1.5; None without a limit.

    Args:
        mount: where control groups are mounted.
        membership: the process's own `/proc/self/cgroup`.
    """
    quotas = [quota for folder in _groups(mount, membership, "cpu") if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def usable_processors() -> int:
    """Processors that this process may keep busy all the time: those it may run on, within its quota.

    A quota is rounded down: threads that wait for one that was stopped for the rest of a period lose it, too.
    """
    is_known = hasattr(os, "sched_getaffinity")
    allowed = len(os.sched_getaffinity(0)) if is_known else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def memory_limit_bytes(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> int | None:
    """Memory that the process may use; None without a limit."""
    limits = [_limit(folder) for folder in _groups(mount, membership, "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_left_bytes(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes below the nearest limit, of the group or one above it; None without a limit."""
    left = [
        max(limit - _used(folder), 0)
        for folder in _groups(mount, membership, "memory")
        if (limit := _limit(folder)) is not None
    ]
    return min(left, default=None)


def _groups(mount: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of the process's group for a controller and of the groups above it, up to the root."""
    root = mount / controller if (mount / controller).is_dir() else mount  # version 1, else 2
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" if root == mount else controller in controllers.split(","):
            own = root / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))
            return
    yield root


def _quota(folder: Path) -> float | None:
    """Processors by `cpu.max` (version 2) or `cpu.cfs_quota_us` (version 1)."""
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota = _text(folder / "cpu.cfs_quota_us").strip()
        period = _text(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and int(period or 0) else None


def _limit(folder: Path) -> int | None:
    """`memory.max` (version 2) or `memory.limit_in_bytes` (version 1, where no limit is a huge number)."""
    text = (_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _used(folder: Path) -> int:
    """Bytes in use, without what was read from files: it is given back when asked for, the model's too."""
    used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes") or "0"
    counts = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    return int(used) - int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _text(file: Path) -> str:
    """A small file's text, "" if there is none."""
    try:
        return file.read_text()
    except OSError:
        return ""
