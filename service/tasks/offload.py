"""One worker thread for texts that would hold up the event loop. Read `run` for who uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LARGE_TEXT_BYTES = 8 * 1024


class Offloader:
    """Runs work on small texts at once, work on large texts in a thread of its own, one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenise")

    async def run(self, texts: Iterable[str], work: Callable[[], T]) -> T:
        """Call `work` where it does no harm.

        Args:
            texts: what the work grows with.
            work: a function without side effects: it may go on after its caller was cancelled.

        Returns:
            What `work` returned; what it raised is raised.
        """
        if sum(map(_num_bytes, texts)) <= LARGE_TEXT_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Let the thread end after the work it has."""
        self._thread.shutdown(wait=False)


def _num_bytes(text: str) -> int:
    """UTF-8 length, cheaply: an upper bound where the exact one would cost a copy of a large text."""
    return len(text) if text.isascii() else 4 * len(text)
