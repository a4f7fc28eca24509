"""The processes of a run: one, or those that `torchrun` or `accelerate launch` started together."""

from collections.abc import Callable
from typing import Any

import torch


def processes() -> Any:
    """Give accelerate's state of them: `is_main_process`, `main_process_first()`."""
    from accelerate import PartialState

    # without `cpu`, each process on a processor would think that it is alone
    return PartialState(cpu=not torch.accelerator.is_available())


def told_once(report: Callable[[str], None]) -> Callable[[str], None]:
    """Give what reports on the first process, and on the others nothing."""
    return report if processes().is_main_process else lambda line: None
