"""Huge pages for what is streamed every step: the weights and the KV cache."""

from __future__ import annotations

import mmap
import threading
import weakref
from typing import Any

import numpy as np

_HUGE_PAGE = 2 << 20
_SHARED_BYTES = 64 << 20  # of address space that arrays of less share, so that none ends in small pages

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_lock = threading.Lock()
_shared: weakref.ref[_Bytes] | None = None  # its arrays keep it
_used = 0


def huge_array(size: int) -> _Bytes:
    """Zeroed bytes in huge pages: fewer address look-ups, a third more bandwidth.

    Memory is taken when it is first written, a huge page at a time; behind the last whole one of a large
    array a small page. Arrays that are not large lie behind each other.

    Args:
        size: bytes; up to `_SHARED_BYTES` more of address space are taken.

    Returns:
        (size,) at a cache line's border, a large one at a huge page's.
    """
    global _shared, _used
    if size >= _SHARED_BYTES:
        whole, start = _mapped(size)
        return whole[start : start + size]
    with _lock:
        shared = None if _shared is None else _shared()
        if shared is None or _used + size > len(shared):
            shared, _used = _mapped(_SHARED_BYTES)
            _shared = weakref.ref(shared)
        start, _used = _used, _used + -(-size // 64) * 64
        return shared[start : start + size]


def _mapped(size: int) -> tuple[_Bytes, int]:
    """A mapping of its own, which lives as long as the array or a view of it, and where huge pages begin."""
    # private: shared memory, Python's own choice, gets no huge pages unless an administrator says so
    region = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(region, np.uint8)
    start = -whole.ctypes.data % _HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= _HUGE_PAGE:
        region.madvise(mmap.MADV_HUGEPAGE, start, size // _HUGE_PAGE * _HUGE_PAGE)
    return whole, start
