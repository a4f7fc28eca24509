"""What an engine is built from: every value decided, nothing read from the environment. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Precision = Literal["float32", "bfloat16", "int8"]
DeviceName = Literal["cpu", "cuda"]
BackendName = Literal["reference", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """See the module's docstring. Limits default to what suits a processor; `devices` knows each device's."""

    folder: Path
    device: DeviceName = "cpu"
    # None: bfloat16, which halves what is read for each token, or float32 where torch would be slow with it
    precision: Precision | None = None
    # None: the device's fast kernels where they pass their check, else the reference
    backend: BackendName | None = None
    is_deterministic: bool = False
    # 0: see `loader.allocate_cache`
    kv_cache_bytes: int = 0
    max_batch_tokens: int = 192
    max_running: int = 64
    # 0: one for each processor that this process may use
    num_threads: int = 0
    speculation: bool = True
    # of a small model of the same vocabulary that proposes drafts; None: there is none
    draft_folder: Path | None = None
    # told of progress, one line each
    report: Callable[[str], None] = field(default=lambda line: None)
    # told of what an operator should look at
    warn: Callable[[str], None] = field(default=lambda line: None)
    # told that torch computes because the fast kernels failed; may raise to refuse that
    fall_back: Callable[[str], None] = field(default=lambda line: None)
    # around what takes seconds: told what it is
    step: Callable[[str], AbstractContextManager[None]] = field(default=lambda what: nullcontext())
