"""The running service: HTTP in front, tasks behind, the engine underneath. `docs/architecture.md` first.

`from service import LLM` is the same in Python, without HTTP; it loads torch only then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.llm import LLM, Score

__all__ = ["LLM", "Score"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only then: the commands must start at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from service import llm

    return getattr(llm, name)
