"""Which backend computes: the kernels where they pass their check on this very machine, else torch."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from service.engine import backends
from service.engine.backend import FastBackend, Reference
from service.engine.backends import choose
from service.engine.backends.cpu import cache, kernels, processor
from service.engine.backends.cpu.backend import CpuBackend
from service.engine.backends.kernel_check import KernelMismatch
from service.engine.backends.torch.backend import TorchBackend
from service.engine.config import EngineConfig, Precision
from service.engine.devices import DEVICES
from service.engine_setup import engine_config
from service.errors import SettingsError
from service.settings import Settings


@pytest.mark.timeout(300)  # compiles after a change of the kernels
def test_the_kernels_of_this_processor_pass_their_check() -> None:
    told: list[str] = []
    backend = choose(EngineConfig(Path(), precision="bfloat16", report=told.append))
    assert isinstance(backend, CpuBackend), told
    assert "checked" in told[-1]


class Told:
    """What a config is told, by the way it is told."""

    def __init__(self, precision: Precision = "int8") -> None:
        self.lines: list[tuple[str, str]] = []
        self.config = EngineConfig(
            Path(),
            precision=precision,
            report=lambda line: self.lines.append(("report", line)),
            warn=lambda line: self.lines.append(("warn", line)),
            fall_back=lambda line: self.lines.append(("fall_back", line)),
        )


def failing(times: int, error: Exception, made: list[int]) -> Callable[[EngineConfig], FastBackend]:
    """Makes backends of which the first few fail their check."""

    class Backend:
        precision, device, name = "int8", DEVICES["cpu"], "made"

        def self_check(self, reference: Reference) -> str:
            if len(made) <= times:
                raise error
            return "checked"

    def make(config: EngineConfig) -> FastBackend:
        made.append(1)
        return cast(FastBackend, Backend())

    return make


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the kernels were deleted; they are not, here."""
    times: list[int] = []
    monkeypatch.setattr(backends, "_forget_kernels", lambda: times.append(1))
    return times


MISMATCH = KernelMismatch("attention: differs from torch by 1, allowed 0.1")


def test_kernels_that_fail_are_compiled_once_more(
    monkeypatch: pytest.MonkeyPatch, forgotten: list[int]
) -> None:
    made: list[int] = []
    monkeypatch.setitem(backends._FAST, "cpu", failing(1, EOFError("Ran out of input"), made))
    told = Told()
    assert choose(told.config).name == "made"
    assert (len(made), len(forgotten)) == (2, 1)
    assert [kind for kind, _ in told.lines] == ["warn", "report"]
    assert "compiled anew: EOFError: Ran out of input" in told.lines[0][1]


def test_kernels_that_fail_again_are_off_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch, forgotten: list[int]
) -> None:
    made: list[int] = []
    monkeypatch.setitem(backends._FAST, "cpu", failing(2, MISMATCH, made))
    told = Told()
    backend = choose(told.config)
    assert isinstance(backend, TorchBackend) and backend.precision == "int8"
    assert (len(made), len(forgotten)) == (2, 1)
    kind, line = told.lines[-1]
    assert kind == "fall_back" and "slower" in line and "differs from torch by 1" in line


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_want_of_memory_is_no_damage(
    monkeypatch: pytest.MonkeyPatch, forgotten: list[int], error: Exception
) -> None:
    monkeypatch.setitem(backends._FAST, "cpu", failing(2, error, []))
    with pytest.raises(type(error)):
        choose(Told().config)
    assert not forgotten


def test_who_refuses_to_compute_without_kernels_is_heard(
    monkeypatch: pytest.MonkeyPatch, forgotten: list[int]
) -> None:
    monkeypatch.setitem(backends._FAST, "cpu", failing(2, MISMATCH, []))
    config = engine_config(Settings(device="cpu", kernel_fallback=False), Path())
    with pytest.raises(SettingsError, match=r"TEXTGEN_KERNEL_FALLBACK=0 .*differs from torch"):
        choose(config)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "one bit"])
def test_damaged_kernels_are_compiled_anew(tmp_path: Path, damage: str) -> None:
    """In a process of its own, since what is compiled stays in this one."""
    code = """
from pathlib import Path
from service.engine.backends import choose
from service.engine.config import EngineConfig, Precision
from service.engine.devices import DEVICES
from service.errors import SettingsError
from service.settings import Settings
told = []
tell = dict(report=told.append, warn=told.append, fall_back=told.append)
config = EngineConfig(Path(), precision="float32", **tell)
print(choose(config).name, *told, sep="\\n")
"""

    def start() -> list[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    assert start()[0] == "cpu"
    [file] = tmp_path.iterdir()
    file.write_bytes(damaged(file.read_bytes())[damage])
    name, *told = start()
    assert name == "cpu" and not any("torch computes" in line for line in told), told
    assert f"compiled anew: DamagedKernels: {file} is damaged" in told[0]
    assert "anew" not in "".join(start())


def damaged(data: bytes) -> dict[str, bytes]:
    """What may become of a file, by the kind of damage."""
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    return {"cut": data[:middle], "empty": b"", "zeros": bytes(len(data)), "one bit": flipped}


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled kernels are kept, empty."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_kernels_that_were_kept_are_found(kernel_folder: Path) -> None:
    objects = [b"some code", b"", b"more code"]
    assert cache.read() is None
    assert cache.keep(objects) == ""
    assert cache.read() == objects
    assert [file.suffix for file in kernel_folder.iterdir()] == [".nbk"]


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "one bit"])
def test_damage_is_noticed_before_the_code_runs(kernel_folder: Path, damage: str) -> None:
    cache.keep([b"some code" * 100])
    [file] = kernel_folder.iterdir()
    file.write_bytes(damaged(file.read_bytes())[damage])
    with pytest.raises(cache.DamagedKernels, match=str(file)):
        cache.read()


def test_a_file_far_too_large_is_damage_and_not_read(kernel_folder: Path) -> None:
    cache.keep([b"some code"])
    [file] = kernel_folder.iterdir()
    os.truncate(file, 1 << 36)  # holes, as a volume may be left
    with pytest.raises(cache.DamagedKernels, match=str(file)):
        cache.read()


def test_what_is_no_file_is_compiled_anew(kernel_folder: Path) -> None:
    os.mkfifo(cache.path())
    assert cache.read() is None
    assert cache.keep([b"code"]) == ""
    assert cache.read() == [b"code"]


def test_kernels_that_cannot_be_kept_leave_nothing_behind(
    kernel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert f"in {kernel_folder} (NUMBA_CACHE_DIR): No space left" in cache.keep([b"code"])
    assert not any(kernel_folder.iterdir())


def test_each_start_that_has_to_compile_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_loaded", replace(kernels.load(), complaint="no folder"))
    told = Told()
    choose(told.config)
    assert ("warn", "no folder") in told.lines


@pytest.mark.parametrize("complaint", ["", "may not write"])
def test_damaged_kernels_are_replaced_where_that_may_be(
    kernel_folder: Path, monkeypatch: pytest.MonkeyPatch, complaint: str
) -> None:
    cache.path().write_bytes(b"junk")
    for name, value in {"_loaded": None, "_is_distrusted": False, "_retired": []}.items():
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(kernels, "_compile", lambda: [b"code"])
    monkeypatch.setattr(kernels, "_link", lambda objects, told: (objects, told))
    if complaint:
        monkeypatch.setattr(cache, "keep", lambda objects: complaint)
    with pytest.raises(cache.DamagedKernels):
        kernels.load()
    kernels.forget()
    assert kernels.load() == ([b"code"], complaint)
    if not complaint:
        assert cache.read() == [b"code"]


def test_kernels_are_those_of_this_processor(kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.keep([b"code"])
    monkeypatch.setattr(processor, "features", lambda: "+another")
    assert cache.read() is None


def test_a_compiler_that_fails_is_told_with_its_last_line(
    kernel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_loaded", None)
    monkeypatch.setattr(kernels, "PARTS", (("no_such_kernel",),))
    with pytest.raises(kernels.CannotCompile, match="compiler failed: KeyError: 'no_such_kernel'"):
        kernels.load()
    assert not any(kernel_folder.iterdir())


def test_the_compiler_is_this_service_whatever_lies_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "service.py").write_text("raise SystemExit('another service')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernels, "PARTS", (("no_such_kernel",),))
    with pytest.raises(kernels.CannotCompile, match="KeyError: 'no_such_kernel'"):
        kernels._compile()


def test_a_process_that_serves_imports_neither_transformers_nor_a_compiler() -> None:
    code = """
import sys
from service.engine_setup import warm_up
from service.settings import Settings
assert warm_up(Settings(device="cpu", kv_cache_bytes=10_000_000))["kernels"] == "cpu"
print("loaded:", sorted({"transformers", "numba", "pandas", "accelerate", "datasets"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_gpu_that_must_be_deterministic_computes_in_exact_torch() -> None:
    told: list[str] = []
    backend = choose(EngineConfig(Path(), device="cuda", is_deterministic=True, report=told.append))
    assert isinstance(backend, TorchBackend) and backend.is_exact
    assert told == ["deterministic: torch computes on the GPU, in row buckets (slower)"]


def test_a_backend_that_is_named_is_taken() -> None:
    backend = choose(EngineConfig(Path(), backend="reference", precision="bfloat16", num_threads=3))
    assert isinstance(backend, TorchBackend) and not backend.is_exact and backend.num_threads == 3
