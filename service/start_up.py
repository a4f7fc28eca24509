"""The start, told step by step: one log line for each when it is over, with its seconds; on a terminal a bar
shows meanwhile how far it is.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.logs import get_logger, show_below

_EVERY_S = 0.25  # the bar's clock goes on
_WIDTH = 20  # of the bar, in characters


@contextmanager
def uncollected() -> Iterator[None]:
    """Import inside without Python's search for garbage. Imports leave next to none, and each search walks
    all that they have made so far: a fifth of their time. What is there at the end is not searched again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


class StartUp:
    """The steps of one start.

    Args:
        num_steps: how many there will be, for the bar.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._num_done = 0

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Do a step inside, and tell of it afterwards.

        Args:
            what: as a log line says it: "reading the weights (14 MB)".
        """
        started, is_over = time.monotonic(), threading.Event()
        painter = threading.Thread(target=self._paint, args=(what, is_over), name="start-up", daemon=True)
        painter.start()
        try:
            yield
        finally:
            is_over.set()
            painter.join()
        self._num_done += 1
        get_logger().info(what, seconds=round(time.monotonic() - started, 1))

    def _paint(self, what: str, is_over: threading.Event) -> None:
        started = time.monotonic()
        filled = _WIDTH * self._num_done // self._num_steps
        bar = "█" * filled + "░" * (_WIDTH - filled)
        while show_below(f"{bar} {what} · {time.monotonic() - started:.0f} s") and not is_over.wait(_EVERY_S):
            pass
        show_below("")
