"""How much memory is left, and what is said when it is not enough."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from service.engine.architecture import UnsupportedCheckpoint
from service.engine.memory import left_in_container, one_line_without_host_memory

TORCH_SAYS = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"


def container(folder: Path, limit: str) -> Path:
    """The files of a control group that uses 600 bytes, 100 of them for files it read."""
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text("600\n")
    (folder / "memory.stat").write_text("anon 450\nfile 150\ninactive_file 100\n")
    return folder


def test_files_that_were_read_count_as_free_in_a_container(tmp_path: Path) -> None:
    assert left_in_container(container(tmp_path, "1000")) == 500


def test_a_container_of_version_1_has_its_limit(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000\n")
    (folder / "memory.usage_in_bytes").write_text("600\n")
    (folder / "memory.stat").write_text("total_inactive_file 100\n")
    assert left_in_container(tmp_path) == 500


def test_a_container_that_uses_more_than_its_limit_has_nothing_left(tmp_path: Path) -> None:
    assert left_in_container(container(tmp_path, "300")) == 0


def test_a_container_without_a_limit_has_none(tmp_path: Path) -> None:
    assert left_in_container(container(tmp_path, "max")) is None


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
