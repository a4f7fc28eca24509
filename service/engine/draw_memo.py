"""What a sampler keeps of a sequence from token to token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class DrawMemo:
    """Room for what a sampler makes of a sequence once."""

    kept: object | None = None
