"""Servers that a script starts end with it, however it ends."""

from __future__ import annotations

import ctypes
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # Linux, prctl(2)


def end_with_parent() -> None:
    """For `preexec_fn`: on Linux this process gets SIGTERM when the one that started it has ended, even by
    SIGKILL.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
