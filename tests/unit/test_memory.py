"""What is said when there is not enough memory."""

from __future__ import annotations

import errno

import pytest

from model_store.errors import UnsupportedCheckpoint
from service.engine.memory import one_line_without_host_memory

TORCH_SAYS = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, "no memory"), RuntimeError(TORCH_SAYS)]
)
def test_running_out_of_memory_is_one_line(error: Exception) -> None:
    line = r"^out of memory at start: \d+ MiB are left; "
    with pytest.raises(UnsupportedCheckpoint, match=line), one_line_without_host_memory():
        raise error


def test_other_faults_pass_as_they_are() -> None:
    with pytest.raises(OSError, match="gone"), one_line_without_host_memory():
        raise OSError(errno.ENOENT, "gone")
