"""Limits of control groups, in both versions, within a container's own view and outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.engine import container as container_module
from service.engine.container import cpu_quota, memory_left_bytes, memory_limit_bytes


def write(folder: Path, **files: str) -> None:
    """Files of a control group; `_` in a name stands for its first dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")


def membership(folder: Path, *lines: str) -> Path:
    file = folder / "membership"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("text", "quota"), [("150000 100000", 1.5), ("max 100000", None), ("50000 100000", 0.5), ("", None)]
)
def test_a_quota_of_version_2(tmp_path: Path, text: str, quota: float | None) -> None:
    write(tmp_path / "fs", cpu_max=text)
    assert cpu_quota(tmp_path / "fs", membership(tmp_path, "0::/")) == quota


@pytest.mark.parametrize(("text", "quota"), [("200000", 2.0), ("-1", None)])
def test_a_quota_of_version_1(tmp_path: Path, text: str, quota: float | None) -> None:
    write(tmp_path / "fs" / "cpu", cpu_cfs_quota_us=text, cpu_cfs_period_us="100000")
    where = membership(tmp_path, "4:memory:/docker/1", "3:cpu,cpuacct:/docker/1")  # not seen from within
    assert cpu_quota(tmp_path / "fs", where) == quota


def test_the_tightest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "fs", cpu_max="max 100000")
    write(tmp_path / "fs" / "system.slice", cpu_max="300000 100000")
    write(tmp_path / "fs" / "system.slice" / "textgen.service", cpu_max="400000 100000")
    assert cpu_quota(tmp_path / "fs", membership(tmp_path, "0::/system.slice/textgen.service")) == 3.0


@pytest.mark.parametrize(("quota", "threads"), [(None, 6), (0.5, 1), (1.0, 1), (2.7, 2), (64.0, 6)])
def test_threads_keep_to_the_quota_and_to_the_processors(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: int
) -> None:
    monkeypatch.setattr(container_module, "cpu_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)))
    assert container_module.usable_processors() == threads


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert (cpu_quota(nowhere, nowhere), memory_limit_bytes(nowhere, nowhere)) == (None, None)


def container(tmp_path: Path, limit: str) -> tuple[Path, Path]:
    """A group that uses 600 bytes, 100 of them for files it read."""
    stat = "anon 450\nfile 150\ninactive_file 100"
    write(tmp_path / "fs", memory_max=limit, memory_current="600", memory_stat=stat)
    return tmp_path / "fs", membership(tmp_path, "0::/")


def test_files_that_were_read_count_as_free(tmp_path: Path) -> None:
    assert memory_left_bytes(*container(tmp_path, "1000")) == 500


def test_a_group_of_version_1_has_its_limit(tmp_path: Path) -> None:
    stat = "inactive_file 1\ntotal_inactive_file 100"
    folder = tmp_path / "fs" / "memory"
    write(folder, memory_limit_in_bytes="1000", memory_usage_in_bytes="600", memory_stat=stat)
    where = membership(tmp_path, "4:memory:/")
    assert memory_left_bytes(tmp_path / "fs", where) == 500
    assert memory_limit_bytes(tmp_path / "fs", where) == 1000


def test_version_1_says_no_limit_with_a_huge_number(tmp_path: Path) -> None:
    write(tmp_path / "fs" / "memory", memory_limit_in_bytes="9223372036854771712")
    assert memory_limit_bytes(tmp_path / "fs", membership(tmp_path, "4:memory:/")) is None


def test_a_group_that_uses_more_than_its_limit_has_nothing_left(tmp_path: Path) -> None:
    assert memory_left_bytes(*container(tmp_path, "300")) == 0


def test_a_group_without_a_limit_has_none(tmp_path: Path) -> None:
    assert memory_left_bytes(*container(tmp_path, "max")) is None


def test_the_group_with_the_least_left_counts(tmp_path: Path) -> None:
    write(tmp_path / "fs" / "pod", memory_max="1000", memory_current="900")
    write(tmp_path / "fs" / "pod" / "one", memory_max="800", memory_current="100")
    assert memory_left_bytes(tmp_path / "fs", membership(tmp_path, "0::/pod/one")) == 100


def complaint(folder: str) -> str:
    """What the module that keeps compiled kernels has to say when it writes some into this folder."""
    code = "from service.engine.backends.cpu import cache; print(cache.keep([b'code']), end='')"
    env = {**os.environ, "NUMBA_CACHE_DIR": folder}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout


def test_a_kernel_folder_that_cannot_be_written_is_said() -> None:
    said = complaint("/dev/null/kernels")
    assert f"user {os.getuid()} cannot keep them in /dev/null/kernels (NUMBA_CACHE_DIR)" in said


def test_a_kernel_folder_that_can_be_written_needs_no_word(tmp_path: Path) -> None:
    assert complaint(str(tmp_path)) == ""
