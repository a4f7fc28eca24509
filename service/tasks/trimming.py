"""Strips white space off a text that comes in pieces. Read `summarize` for the use."""

from __future__ import annotations


class Trimmer:
    """Passes a streamed text on so that the pieces put together are `text.strip()`.

    White space is held back until something follows it; what never gets followed is dropped.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_started = False

    def push(self, delta: str) -> str:
        """Take a piece and return what can be shown now."""
        text = self._held + delta
        if not self._is_started:
            text = text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._is_started = self._is_started or bool(shown)
        return shown
